"""Nextflow's processes without Nextflow: their scripts as a shell gets them, in a folder with links, as a task has it.

Of Groovy it knows strings alone: escapes, and values in place of names.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SHELL = ("bash", "-Ceuo", "pipefail")
"""How nf-core's pipelines call the shell."""


@dataclass(frozen=True)
class Process:
    """One process of a module.

    Attributes:
        text: its file.
    """

    text: str

    @property
    def staged(self) -> dict[str, str]:
        """The inputs that are files, each with the name that its task sees."""
        return dict(re.findall(r"path\((\w+), stageAs: '([^']+)'\)", self._section("input")))

    @property
    def inputs(self) -> list[str]:
        """The names of all inputs, in order."""
        return re.findall(r"(?:val|path)[( ](\w+)", self._section("input"))

    @property
    def outputs(self) -> dict[str, str]:
        """The output files, each by the name of its channel."""
        return {name: path for path, name in re.findall(r'path\("([^"]+)"\), emit: (\w+)', self._section("output"))}

    @property
    def channels(self) -> list[str]:
        """The names of all output channels, in order."""
        return re.findall(r"emit: (\w+)", self._section("output"))

    @property
    def version(self) -> str:
        """The command that tells the tool's version."""
        [found] = re.findall(r'eval\("([^"]+)"\)', self._section("output"))
        return str(found)

    def script(self, section: str, values: Mapping[str, str]) -> str:
        """What the shell gets; raises KeyError for a name that has no value in `values`."""
        [block] = re.findall(r'"""\n(.*?)"""', self._section(section), re.DOTALL)
        return re.sub(
            r"\\(.)|\$\{([^}]*)\}|\$(\w+)",
            lambda found: found[1] if found[1] else values[found[2] or found[3]],
            block,
            flags=re.DOTALL,
        )

    def run(
        self,
        task: Path,
        staged: Mapping[str, Path],
        values: Mapping[str, str],
        environment: Mapping[str, str],
        section: str = "script",
    ) -> subprocess.CompletedProcess[str]:
        """Runs the script in a new folder, where links of the staged names lead to files and folders."""
        task.mkdir(parents=True)
        for name, path in staged.items():
            (task / name).parent.mkdir(parents=True, exist_ok=True)
            (task / name).symlink_to(path)
        words = [*SHELL, "-c", self.script(section, values)]
        return subprocess.run(words, cwd=task, env=dict(environment), text=True, capture_output=True)

    def _section(self, name: str) -> str:
        return re.split(r"\n    (?:\w+):\n", self.text.partition(f"\n    {name}:\n")[2])[0]
