"""docs/how-to/own-weights.md: every file and command of the page, in order, from training to the comparison."""

from __future__ import annotations

import re
from pathlib import Path

import tomllib

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
    (tmp_path / "ball.toml").unlink()  # init writes it
    commands = pages.commands(text)
    serving = next(index for index, command in enumerate(commands) if command[0] == "voxtile-server")
    for command in commands[:serving]:
        said = pages.run(command, tmp_path)
        if command[:2] == ["voxtile-build", "init"]:
            edit(tmp_path / "ball.toml", shown["ball.toml"])
        if command[:2] == ["voxtile-build", "explain"]:
            assert "8 of 32 × 32 × 32 voxels" in said
    output = ""
    with pages.served(commands[serving], tmp_path) as address:
        for command in commands[serving + 1 :]:
            here = [address if word == "localhost:8001" else word for word in command]
            output += pages.run(here, tmp_path, address)
    assert number_after("voxels that differ from MONAI's: ", output) <= MOST_CHANGED
    assert number_after("Dice with the truth: ", output) > 0.9
    assert (tmp_path / "mask.png").exists()


def edit(file: Path, finished: str) -> None:
    """Puts the finished spec in place of the one that `init` wrote, if the two differ in what the page says alone."""
    written = tomllib.loads(file.read_text(encoding="utf-8"))
    digest = written["weights"]["sha256"]
    rows = re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [line.partition(":")[0] for line in written.pop("todo")] == rows
    wanted = tomllib.loads(finished.replace("0" * 64, digest))
    for key in ("preprocessing", "serving"):
        assert wanted.pop(key)
    assert written.pop("serving") == {}  # all of its keys stand there as comments
    for table, key in (("inferer", "roi_size"), ("output", "labels")):
        assert wanted[table].pop(key) != written[table].pop(key)
    assert wanted["input"].pop("dtype") == "int16"
    assert wanted["inferer"].pop("overlap") == 0.5
    assert written == {**wanted, "inferer": {}}
    file.write_text(finished.replace("0" * 64, digest), encoding="utf-8")


def number_after(words: str, output: str) -> float:
    found = re.search(re.escape(words) + r"([\d.]+)", output)
    assert found is not None, output
    return float(found[1])
