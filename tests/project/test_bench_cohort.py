"""The benchmark of cohorts: once on sixty scans with a real server, killed three times, and its section of the page."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import readme
from bench.cohort.report import NO_RUN, cohort_block
from bench.cohort.running import Run

ROOT = Path(__file__).parents[2]
CASES = 60
FIGURES: dict[str, Any] = {
    "machine": {"cpu": "a CPU", "cores": 2, "memory_bytes": 2**34, "load_before": 0.25},
    "cases": 2000,
    "straight": {
        "first_s": 1.0, "case_s": 0.04, "slower": 1.25, "bytes_early": 100 << 20, "bytes_late": 102 << 20,
        "steps_s": {"read": 0.01, "infer": 0.01, "write": 0.0},
    },
    "listed_s": 0.4, "collected_s": 0.08, "twice": 0, "lost": 1,
    "killed": [
        {"found": 0, "masks": 501, "first_s": 1.0, "code": -9},
        {"found": 501, "masks": 2000, "first_s": 2.0, "code": 0},
    ],
}  # fmt: skip


def test_sixty_scans_are_killed_three_times_and_none_is_lost_or_done_twice(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench.cohort", "--cases", str(CASES), "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "cohort.json").read_text())
    assert (told["cases"], told["twice"], told["lost"]) == (CASES, 0, 0)
    assert [run["code"] for run in told["killed"]] == [-9, -9, -9, 0]
    masks = [run["masks"] for run in told["killed"]]
    assert [run["found"] for run in told["killed"]] == [0, *masks[:-1]]
    assert all(number * CASES // 4 <= count < CASES for number, count in enumerate(masks[:-1], 1))
    assert masks[-1] == CASES
    costs = told["straight"]
    assert costs["case_s"] > costs["steps_s"]["infer"] > 0
    assert costs["bytes_late"] > 10 << 20
    assert (tmp_path / "cohort.md").read_text() == cohort_block(told) + "\n"


def test_too_few_scans_are_refused(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench.cohort", "--cases", "3", "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr.count("expected at least 24, found 3")) == (2, 1)
    assert not (tmp_path / "out").exists()


def test_rates_are_those_of_the_part_that_is_asked_for() -> None:
    """Two seconds a case at first and four later, after five seconds to begin; ten masks were there before."""
    seen = [(0.0, 10, 5), (5.0, 10, 7), *((5.0 + 2 * n, 10 + n, 100 + n) for n in range(1, 51))]
    seen += [(105.0 + 4 * n, 60 + n, 200 + n) for n in range(1, 51)]
    run = Run(10, seen)
    assert run.first_s == 7
    assert run.seconds_a_case(0.1, 0.4) == 2
    assert run.seconds_a_case(0.6, 1) == 4
    assert (run.largest_bytes(0.1, 0.5), run.largest_bytes(0.75, 1)) == (150, 250)


def test_the_section_says_what_was_measured() -> None:
    text = cohort_block(FIGURES)
    for said in (
        "2,000 scans", "takes 40 ms", "of which 25 % is waiting", "30 ms are beyond it", "1.25×", "1.020×",
        "as 10 cases", "Killed 1 times: 0 cases were done twice, and 1 were lost", "| 2 | 501 | 2000 | 50 | 0 |",
        "| read | 25 % |",
    ):  # fmt: skip
        assert said in text
    assert cohort_block(None) == NO_RUN


def test_a_run_is_published_in_its_section_alone(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in (
        "README.md",
        "docs/performance.md",
        *(f"docs/{one.name}" for one in ROOT.glob("docs/performance*.json")),
    ):
        shutil.copy(ROOT / name, tmp_path / name)
    before = (tmp_path / "docs" / "performance.md").read_text()
    (tmp_path / "cohort.json").write_text(json.dumps(FIGURES))
    assert readme.main(["adopt-cohort", str(tmp_path / "cohort.json")], tmp_path) == 0
    page = (tmp_path / "docs" / "performance.md").read_text()
    assert readme.block_of(page, readme.COHORT) == cohort_block(FIGURES)
    assert readme.with_block(page, "", readme.COHORT) == readme.with_block(before, "", readme.COHORT)


def test_the_page_has_the_published_figures() -> None:
    file = ROOT / "docs" / "performance-cohort.json"
    figures = json.loads(file.read_text()) if file.exists() else None
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert readme.block_of(page, readme.COHORT) == cohort_block(figures)


@pytest.mark.parametrize("key", ["twice", "lost"])
def test_what_was_lost_or_done_twice_is_told(key: str) -> None:
    assert "7" in cohort_block({**FIGURES, key: 7}).partition("Killed")[2].partition(".")[0]
