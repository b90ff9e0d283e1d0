"""Promotes in children, each of which dies at another system call, as under `kill -9`; nothing cleans up behind it.

Run as `python -m tests.support.cut_off_promoting REPOSITORY FOLDER promote|rollback`. The child numbered K works on a
copy of the repository, and of the entries for whole scans beside it, in FOLDER/K. The last child ends by itself; its
number is printed.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from functools import partial
from pathlib import Path

from tests.support.cut_off_publishing import in_child
from voxtile_build.promoting import promote, rollback
from voxtile_build.repository.volume import volume_repository

NAME = "tiny"


def main(repository: Path, folder: Path, what: str) -> int:
    """Returns the number of the first child that was not killed."""
    for number in itertools.count(1):
        copy = folder / str(number) / repository.name
        shutil.copytree(repository, copy)
        shutil.copytree(volume_repository(repository), volume_repository(copy))
        act = partial(promote, NAME, 2, copy) if what == "promote" else partial(rollback, NAME, copy)
        if in_child(act, number):
            return number
    raise AssertionError


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
