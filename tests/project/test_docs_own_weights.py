"""docs/how-to/own-weights.md: every file and command of the page, in order, from training to the comparison."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import pages

PAGE = pages.ROOT / "docs" / "how-to" / "own-weights.md"
MOST_CHANGED = 5
"""Voxels whose two scores are equal up to rounding may get another label; this is 1 in 20,000 of the page's scan."""


def test_page_from_training_to_the_comparison(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = pages.files(text)
    assert list(shown) == ["train.py", "ball.toml", "compare.py"]
    for name, content in shown.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    commands = pages.commands(text)
    serving = next(index for index, command in enumerate(commands) if command[0] == "voxtile-server")
    for command in commands[:serving]:
        said = pages.run(command, tmp_path)
        if command[0] == "sha256sum":
            (tmp_path / "ball.toml").write_text(shown["ball.toml"].replace("0" * 64, said.split()[0]), encoding="utf-8")
    output = ""
    with pages.served(commands[serving], tmp_path) as address:
        for command in commands[serving + 1 :]:
            here = [address if word == "localhost:8001" else word for word in command]
            output += pages.run(here, tmp_path, address)
    assert number_after("voxels that differ from MONAI's: ", output) <= MOST_CHANGED
    assert number_after("Dice with the truth: ", output) > 0.9
    assert (tmp_path / "mask.png").exists()


def number_after(words: str, output: str) -> float:
    found = re.search(re.escape(words) + r"([\d.]+)", output)
    assert found is not None, output
    return float(found[1])
