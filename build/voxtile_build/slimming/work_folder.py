"""The folder in which a distillation works, beside what comes out: one run at a time, and what a killed run left.

Knows nothing of what lies in it but the plan.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtile_build.errors import BuildError, SlimmingError
from voxtile_build.repository.durable import replace_text
from voxtile_build.slimming.plan import require_same

LOCK = "lock"
PLAN = "plan.json"
PLACING = "placing"


@dataclass
class WorkFolder:
    """The folder of a running distillation.

    Attributes:
        path: of the folder.
        holds_work: whether there is anything in it that took time to make; set by whoever makes it.
    """

    path: Path
    holds_work: bool = False

    def hold_to(self, facts: Mapping[str, Any]) -> bool:
        """Write down what the run holds to, or compare it with what an interrupted run wrote down.

        Returns:
            Whether there is an interrupted run to go on with.

        Raises:
            SlimmingError: the interrupted run was begun with something else; names what differs.
        """
        plan = self.path / PLAN
        if not plan.exists():
            replace_text(plan, json.dumps(dict(facts), indent=1))
            return False
        self.holds_work = True
        require_same(_read(plan), json.loads(json.dumps(dict(facts))), self.path)
        return True

    def decided(self, name: str, decide: Callable[[], float]) -> float:
        """A number that is decided once, because it depends on a clock or a disk, and holds for runs that go on."""
        file = self.path / f"{name}.json"
        if not file.exists():
            replace_text(file, json.dumps(decide()))
        try:
            return float(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise _unreadable(file) from None

    def begin_placing(self) -> bool:
        """Write down that from now on files in the output are this run's; whether that was so already."""
        before = (self.path / PLACING).exists()
        replace_text(self.path / PLACING, "")
        return before


def was_placing(output: Path, name: str) -> bool:
    """Whether an interrupted run may have written some of the files that come out, so that they may be replaced."""
    return (work_folder(output, name) / PLACING).exists()


def work_folder(output: Path, name: str) -> Path:
    """Where the distillation of a student works."""
    return output / f".{name}-distilling"


def check_work_folder(output: Path, name: str, *, resume: bool) -> None:
    """Refuse a run where an interrupted one may still want to go on.

    Raises:
        SlimmingError: there is its folder, and `resume` was not asked for; or another run is at work in it.
    """
    folder = work_folder(output, name)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or folder.is_symlink():
        raise SlimmingError(f"{folder}: expected a folder for work, or nothing, found a file or a link; move it away")
    if (folder / LOCK).exists():
        os.close(_locked(folder))
    if not resume:
        raise SlimmingError(
            f"{folder}: a distillation was interrupted here; go on with it by --resume, or remove the folder and begin "
            "anew"
        )


@contextmanager
def claimed(output: Path, name: str) -> Iterator[WorkFolder]:
    """The work folder, for this run alone; it is removed when the block ends well, and kept for --resume otherwise.

    A run that is refused before it made anything leaves nothing behind, neither this folder nor `output`.

    Raises:
        SlimmingError: another run is at work in it.
    """
    made = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    folder = WorkFolder(work_folder(output, name))
    folder.path.mkdir(exist_ok=True)
    lock = _locked(folder.path)
    try:
        yield folder
    except (BuildError, OSError):
        if not folder.holds_work:
            _remove(folder.path)
            if made:
                with suppress(OSError):
                    output.rmdir()
        raise
    else:
        _remove(folder.path)
    finally:
        os.close(lock)


def finish_removal(output: Path, name: str) -> None:
    """Remove what is left of the work folder of a run that was killed while it was removing it."""
    shutil.rmtree(_doomed(work_folder(output, name)), ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove the folder; whenever this run is killed, the folder has its name and is whole, or has it no longer."""
    doomed = _doomed(folder)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _doomed(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-ended")


def _locked(folder: Path) -> int:
    """The folder's lock, as an open file; whoever closes it, or dies, gives it back."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise SlimmingError(f"{folder}: another distillation is at work here; wait until it has ended") from None
    return lock


def _read(plan: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = dict(json.loads(plan.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise _unreadable(plan) from None
    return facts


def _unreadable(file: Path) -> SlimmingError:
    return SlimmingError(
        f"{file}: expected what an interrupted distillation wrote down, found a file that cannot be read; remove "
        f"{file.parent} and begin anew"
    )
