"""Fuzzes the readers, one after the other.

    python -m tests.fuzz [TARGET]… [--minutes 10] [--seed 1]

Each reader gets so many minutes. Ends with 1 where a reader raised an error that is not its own, hung, took too much
memory or touched anything outside its folder. Inputs and findings lie in out/fuzz.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.targets import TARGETS

OUT = Path(__file__).parents[2] / "out" / "fuzz"
HANGS_AFTER_S = 20
MEMORY_MIB = 4096
LONGEST_INPUT = 200_000
MOST_RESTARTS = 25
"""An input that hangs or takes too much memory ends the process; after so many, the reader has failed anyway."""


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(words)
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"expected targets among {', '.join(TARGETS)}, found {', '.join(unknown)}")
    failed = [name for name in options.targets or TARGETS if not fuzz(name, options.minutes * 60, options.seed)]
    print(f"findings in {', '.join(failed)}; see {OUT}" if failed else "no findings")
    return 1 if failed else 0


def fuzz(name: str, seconds: float, seed: int) -> bool:
    """Fuzzes one reader; returns whether nothing was found."""
    folder = OUT / name
    corpus, findings = folder / "corpus", folder / "findings"
    for path in (corpus, findings):
        path.mkdir(parents=True, exist_ok=True)
    for old in (*findings.iterdir(), *folder.glob("*-*")):
        old.unlink()
    for number, data in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
    end, runs = time.monotonic() + seconds, 0
    with (folder / "log").open("wb") as log:
        while (left := int(end - time.monotonic())) > 0 and runs < MOST_RESTARTS:
            command = [
                *(sys.executable, "-m", "tests.fuzz.one", name, str(folder), str(corpus)),
                *(f"-max_total_time={left}", f"-timeout={HANGS_AFTER_S}", f"-rss_limit_mb={MEMORY_MIB}"),
                *(f"-max_len={LONGEST_INPUT}", f"-seed={seed + runs}", f"-artifact_prefix={folder}/", "-len_control=0"),
            ]
            subprocess.run(command, stdout=log, stderr=log, env=_environment(), check=False)
            runs += 1
    return _report(name, folder, seconds)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _report(name: str, folder: Path, seconds: float) -> bool:
    texts = [path.read_text(encoding="utf-8") for path in sorted((folder / "findings").glob("*.txt"))]
    ended = sorted(path.name for path in folder.glob("*-*"))
    words = (folder / "log").read_text(errors="replace").split("\n")
    executed = sum(int(line.split()[1]) for line in words if line.startswith("Done "))
    print(
        f"{name}: {executed} inputs in {seconds:.0f} s, {len(texts)} findings, {len(ended)} hangs or crashes",
        flush=True,
    )
    for text in texts:
        print(f"  {text.splitlines()[0]}")
    for one in ended:
        print(f"  {folder / one}")
    if not executed and not ended:
        print("  the fuzzer did not run:\n" + "\n".join(words[-15:]))
    return bool(executed) and not texts and not ended


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
