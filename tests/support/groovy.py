"""Parses Groovy with reftrace in a process of its own: its Go runtime changes what signals do in the process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SCRIPT = """
import json, sys
import reftrace

kind, path = sys.argv[1:]
if kind == "config":
    error, processes = reftrace.ConfigFile.from_file(path).error, []
else:
    found = reftrace.Module.from_file(path)
    error = None if isinstance(found, reftrace.Module) else found
    processes = [] if error else [one.name for one in found.processes]
print(json.dumps({"error": str(error) if error else "", "processes": processes}))
"""


@dataclass(frozen=True)
class Parsed:
    """What was found in a file.

    Attributes:
        error: why it cannot be parsed; empty where it can.
        processes: the names of its processes.
    """

    error: str
    processes: list[str]


def parsed(file: Path, kind: str = "module") -> Parsed:
    """Parses a file of the kind `module` or `config`."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, kind, str(file)], capture_output=True, text=True, check=True)
    return Parsed(**json.loads(done.stdout))
