"""docs/performance.md: the table that sets two whole runs beside each other is of those runs' own figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
RUNS = ("performance.json", "performance-other-cpu.json")
PREDICTOR = "6 nnU-Net's own predictor"


def cells(run: dict[str, Any]) -> dict[str, str]:
    """What the table says of a run, by its first column."""
    roof = run["machine"]["roofline"]
    swin, brain, ct, unet = (rows_of(run, name) for name in ("swinunetr", "nnunet", "nnunet-ct", "unet"))
    air = rows_of(run, "swinunetr half air")["5 + empty tiles skipped"]
    shared, int8, predictor = brain["5 + shared memory"], brain["5 + int8"], brain[PREDICTOR]
    swin_ours, swin_runtime = fastest(swin, "5 "), fastest(swin, "4 ")
    resampling = next(row for row in run["parts"] if row["part"].startswith("resampling") and row["way"] == "Voxtile")
    return {
        "large products in bf16, 10⁹ operations a second": f"{roof['matmul bfloat16 GFLOP/s']:.0f}",
        "in fp32": f"{roof['matmul fp32 GFLOP/s']:.0f}",
        "copying, GB/s": f"{roof['copy GB/s']:.0f}",
        "SwinUNETR 24, best row against row 1": f"{fastest(swin, '1 ') / swin_ours:.1f}×",
        "against row 1b, against row 4's best": (
            f"{fastest(swin, '1b') / swin_ours:.1f}×, {swin_runtime / swin_ours:.2f}×"
        ),
        "half air, empty tiles skipped": f"{air['ratio']:.1f}×",
        "PlainConvUNet, brain, against nnU-Net's predictor: fp32": ahead(predictor, brain["5 Voxtile fp32"]),
        "bf16": ahead(predictor, shared),
        "int8": ahead(predictor, int8),
        "memory in bf16, of the predictor's": f"{shared['peak_rss_bytes'] / predictor['peak_rss_bytes']:.2f}",
        "wall over engine: bf16, int8": f"{shared['overhead']:.2f}, {int8['overhead']:.2f}",
        "CT of 25 labels: fp32, bf16, int8": ", ".join(
            ahead(ct[PREDICTOR], ct[name]) for name in ("5 Voxtile fp32", "5 + shared memory", "5 + int8")
        ),
        "smallest Dice of a label there, bf16": f"{ct['5 + shared memory']['dice_min_to_nnunet']:.3f}",
        "small UNet, against row 4's best": f"{fastest(unet, '4 ') / fastest(unet, '5 '):.1f}×",
        "resampling of order 3": f"{resampling['ratio']:.0f}×",
    }


def rows_of(run: dict[str, Any], workload: str) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in run["scans"] if row["workload"] == workload}


def fastest(rows: dict[str, dict[str, Any]], kind: str) -> float:
    return min(float(row["seconds"]) for name, row in rows.items() if name.startswith(kind))


def ahead(slower: dict[str, Any], faster: dict[str, Any]) -> str:
    return f"{slower['seconds'] / faster['seconds']:.1f}×"


def test_two_runs_beside_each_other_are_told_by_their_figures() -> None:
    published, other = (cells(json.loads((DOCS / name).read_text(encoding="utf-8"))) for name in RUNS)
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    section = text.partition("## What was aimed at, on two CPUs\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    told = {line[0]: tuple(line[1:3]) for line in lines if line[0] in published}
    assert told == {name: (published[name], other[name]) for name in published}
    # A line that the figures know nothing of would be one that was typed in.
    assert [line[0] for line in lines if line[0] not in published] == ["run of the tables", "---"]


def test_the_time_that_is_told_is_the_runs_own() -> None:
    seconds = json.loads((DOCS / RUNS[1]).read_text(encoding="utf-8"))["machine"]["seconds"]
    minutes, rest = divmod(seconds, 60)
    assert f"{minutes}:{rest:02d} minutes" in (DOCS / "performance.md").read_text(encoding="utf-8")


def test_the_readme_says_how_much_of_it_is_the_cpu() -> None:
    """Ratios to the first row of each table, as the README has them above that sentence."""
    runs = [json.loads((DOCS / name).read_text(encoding="utf-8"))["scans"] for name in RUNS]
    swin, brain = (
        [max(row["ratio"] for row in rows if row["workload"] == workload and row["row"] in wanted) for rows in runs]
        for workload, wanted in (
            ("swinunetr", ("5 + bf16, int16 in, one mask as uint8 out", "5 + shared memory")),
            ("nnunet", ("5 + bf16, fp16 in and out", "5 + shared memory")),
        )
    )
    readme = " ".join((DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    assert f"SwinUNETR's {swin[0]:.1f}× are {swin[1]:.1f}×" in readme
    assert f"PlainConvUNet's {brain[0]:.1f}× in bf16 are {brain[1]:.1f}×" in readme
