"""Fuzzes one reader with atheris: inputs that reach new code are kept and changed further.

    python -m tests.fuzz.one TARGET FOLDER -max_total_time=600 …         further words are libFuzzer's own

Findings are written to FOLDER/findings, one for each cause; the run goes on. A hang or too much memory ends the
process, and libFuzzer leaves the input in FOLDER.
"""

from __future__ import annotations

import hashlib
import importlib
import random
import resource
import sys
from pathlib import Path

import atheris

ADDRESS_SPACE = 3 << 30
"""Address space that readers may ask for beyond what the libraries take: a larger claim ends in a MemoryError."""

READERS = (
    "voxtile.io.scan",
    "voxtile.card",
    "voxtile_build.importers.bundle.bundle",
    "voxtile_build.importers.nnunet.models",
    "voxtile_build.networks.weights",
    "voxtile_build.spec.spec",
)
"""Imported before the first input, and instrumented: libFuzzer sees which of their lines an input reaches."""


def main() -> None:
    name, folder, *words = sys.argv[1:]
    with atheris.instrument_imports(include=["voxtile", "voxtile_build"]):
        for reader in READERS:
            importlib.import_module(reader)
    from tests.fuzz.probe import Finding, probe  # what they import must have been instrumented before
    from tests.fuzz.targets import TARGETS

    target, findings = TARGETS[name], Path(folder) / "findings"
    findings.mkdir(parents=True, exist_ok=True)

    def one_input(data: bytes) -> None:
        try:
            probe(target, data)
        except Finding as finding:
            kept = findings / hashlib.sha256(finding.key.encode()).hexdigest()[:12]
            if not kept.with_suffix(".txt").exists():
                kept.with_suffix(".input").write_bytes(data)
                kept.with_suffix(".txt").write_text(f"{finding.key}\n\n{finding}\n", encoding="utf-8")

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        made = atheris.Mutate(data, most) if rng.random() < 0.1 else target.change(data, rng)
        return made[:most]

    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + ADDRESS_SPACE, pages + ADDRESS_SPACE))
    atheris.Setup([sys.argv[0], *words], one_input, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
