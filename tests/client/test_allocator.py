"""One arena for all threads: memory that one thread has freed serves another."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MIB = 1 << 20
PIECES = 48 * MIB
PROGRAM = f"""
import sys, threading
from pathlib import Path
from voxtile.cli.allocator import limit_malloc_arenas

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024

def work(turn, done, end):
    turn.wait()
    pieces = [bytearray(64 << 10) for _ in range({PIECES} >> 16)]
    last = bytearray(64 << 10)  # lies behind them, so that the arena cannot shrink
    del pieces
    done.set()
    end.wait()
    del last

if sys.argv[1] == "one":
    limit_malloc_arenas()
end, turns = threading.Event(), [(threading.Event(), threading.Event()) for _ in range(4)]
threads = [threading.Thread(target=work, args=(*turn, end)) for turn in turns]
for thread in threads:
    thread.start()
before = resident()
for turn, done in turns:
    turn.set()
    done.wait()
print(resident() - before)
end.set()
"""


def kept(arenas: str) -> int:
    """Bytes that a process keeps of what four threads have used and freed, one after the other."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, arenas], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_threads_that_share_an_arena_keep_no_more_than_one_of_them_uses() -> None:
    assert kept("one") < 1.5 * PIECES
    assert kept("each its own") > 2.5 * PIECES
