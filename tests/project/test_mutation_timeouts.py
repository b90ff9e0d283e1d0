"""Mutation testing ends the mutants that hang, and no other process."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.mutation.mutmut_run import TURN_S, Timeouts

SLEEPS = (sys.executable, "-c", "import time; time.sleep(60)")
SIGXCPU = 24


def test_a_mutant_that_hangs_is_ended() -> None:
    with subprocess.Popen(SLEEPS) as mutant:
        Timeouts().set(mutant.pid, 0.0)
        assert mutant.wait(30) == -SIGXCPU


def test_the_number_of_a_mutant_that_has_ended_means_nothing_any_more() -> None:
    """Where a system gives the number again, the signal would reach another process."""
    timeouts = Timeouts()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as mutant:
        timeouts.set(mutant.pid, 3600.0)
        assert timeouts.running() == 1
        mutant.communicate()
    until = time.monotonic() + 30
    while timeouts.running() and time.monotonic() < until:
        time.sleep(TURN_S)
    assert timeouts.running() == 0
