"""The README's six rows and its chart: which rows of a run they take, and what the chart says in words."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

from docs.generate import chart, summary

SVG = "{http://www.w3.org/2000/svg}"


def row(workload: str, name: str, seconds: float, mebibytes: int = 100, **more: Any) -> dict[str, Any]:
    measured = {"seconds": seconds, "peak_rss_bytes": mebibytes << 20, "dice_min": 0.99}
    return {"workload": workload, "row": name, **measured, **more}


FIGURES = {
    "scans": [
        row("unet", "1 MONAI, PyTorch fp32", 10.0, 800),
        row("unet", "2 MONAI, PyTorch bf16 autocast", 4.0),
        row("unet", "4 MONAI over OpenVINO <fp32>", 5.0),
        row("unet", "5 Voxtile fp32", 2.5),
        row("unet", "5 + bf16", 2.0, 300, dice_min=0.9871),
        row("nnunet", "1 MONAI, PyTorch fp32", 30.0),
        row("nnunet", "5 + int8", 5.0, dice_min=0.5, dice_min_to_nnunet=0.98),
        row("nnunet", "6 nnU-Net's own predictor", 40.0),
    ],
    "parts": [
        {"section": "memory", "part": "peak memory, 2 scores", "way": way, "seconds": 1.0, "peak_rss_bytes": size << 20}
        for way, size in (("MONAI", 50), ("Voxtile", 20))
    ],
}


def test_table_takes_the_first_way_the_best_other_way_and_the_fastest_of_ours() -> None:
    lines = summary.as_table(summary.lines(FIGURES)).splitlines()
    assert "| 10 s | 4 s, 2.5× | 2.5 s, 4.0× | 2 s, 5.0× | 800 → 300 MiB | 0.987 |" in lines[2]
    assert "| 40 s | 30 s, 1.3× |  | 5 s, 8.0× |" in lines[3]
    assert lines[3].endswith("| 0.980 |"), "against nnU-Net's own predictor, not against MONAI"
    assert "50 → 20 MiB" in lines[4]


def test_chart_has_a_bar_for_each_way_and_says_its_figures() -> None:
    picture = ElementTree.fromstring(chart.draw(summary.lines(FIGURES)))
    _, *bars = [one.attrib["width"] for one in picture.iter(f"{SVG}rect")]  # the first is the background
    widths = [float(width) for width in bars]
    assert len(widths) == 7
    assert max(widths) < chart.WIDTH
    assert widths[3] == max(widths[:4]), "the fastest way has the longest bar"
    assert picture.attrib["role"] == "img"
    assert "Voxtile fastest 5.0×" in str(picture.findtext(f"{SVG}desc"))
    assert "bf16" in "".join(str(text.text) for text in picture.iter(f"{SVG}text"))


def test_a_run_without_figures_has_an_empty_chart() -> None:
    assert summary.lines({"scans": [], "parts": []}) == []
    assert ElementTree.fromstring(chart.draw([])).tag == f"{SVG}svg"
