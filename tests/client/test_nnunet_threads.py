"""The limit on BLAS threads: shared by overlapping blocks, lifted by the last one, and no deadlock after a fork."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from threadpoolctl import threadpool_info

from voxtile.chains.nnunet.threads import run_all, single_threaded_blas

FORKED = """
import os, signal, threading
from voxtile.chains.nnunet.threads import run_all, single_threaded_blas
from threadpoolctl import threadpool_info

def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

import numpy  # has a BLAS
before = blas_threads()
held, done = threading.Event(), threading.Event()

def hold():
    with single_threaded_blas():
        held.set()
        done.wait()

if HELD:
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
else:
    run_all(abs, [-1], 2)
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends a child that hangs
    good = run_all(abs, [-1, -2, -3], 2) == [1, 2, 3] and blas_threads() == before
    os._exit(0 if good else 1)
_, status = os.waitpid(child, 0)
done.set()
assert status == 0, status
"""


def _run(held: bool) -> None:
    code = FORKED.replace("HELD", str(held))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_forked_process_limits_blas_for_itself() -> None:
    _run(held=False)


def test_a_process_forked_while_blas_is_limited_gets_its_threads_back() -> None:
    _run(held=True)


def blas_threads() -> list[int]:
    return [int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_limit_is_lifted_by_the_last_who_holds_it() -> None:
    before = blas_threads()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with single_threaded_blas():
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=hold)
    with single_threaded_blas():
        other.start()
        assert entered.wait(10)
    assert set(blas_threads()) == {1}
    leave.set()
    other.join()
    assert blas_threads() == before


def test_run_all_keeps_order_and_raises() -> None:
    assert run_all(lambda x: x * x, range(5), 3) == [0, 1, 4, 9, 16]
    with pytest.raises(ZeroDivisionError):
        run_all(lambda x: 1 // x, [1, 0], 2)
