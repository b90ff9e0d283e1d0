"""A run's tables as Markdown: at the end of a run, and in docs/performance.md. Knows nothing of how it was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..tables import Column, Row, column, mebibytes, number, share, table

Figures = Mapping[str, Any]
"""A run, as `python -m bench.gpu` writes it."""

NO_RUN = (
    "**No GPU run exists yet**, so there are no figures of a GPU. `python -m bench.gpu` is ready to make one, and "
    "`python -m bench.gpu --tiny` rehearses the whole run on a CPU, with very small networks; what it prints says that "
    "the program works, and nothing about speed."
)
EXPLANATION = (
    "Milliseconds are medians, with the fastest and the slowest run of a call. Share is the network's operations, as "
    "PyTorch counts them, in that time, of the rate of large bf16 products on the same machine, whatever the row's own "
    "type. Memory is the most that PyTorch held. Dice min and changed are against fp32 without TF32. Dice lost is by "
    "how much the Dice with the made-up truth falls from fp32's, for the worst label. Weights are random but for the "
    "last layer."
)


def _spread(key: str, unit: float = 1) -> Callable[[Row], str]:
    """Returns what writes the median of `key` divided by `unit`, with the fastest and the slowest."""

    def text(row: Row) -> str:
        middle, low, high = (number(row[name] / unit) for name in (key, f"{key}_low", f"{key}_high"))
        return f"{middle} ({low}–{high})" if row["runs"] > 1 else middle

    return text


def _per_tile(row: Row) -> str:
    return number(row["ms_per_roi"])


MEMORY = column("memory", "peak_bytes", mebibytes)
AGREEMENT = (column("Dice min", "dice_min", "{:.4f}".format), column("changed", "changed_fraction", share))
WAY, BATCH = column("way", "way"), column("batch", "batch")
RATE_COLUMNS: tuple[Column, ...] = (
    column("rate of the machine", "what"), column("measured", "rate", number), column("unit", "unit"),
)  # fmt: skip
TILE_COLUMNS: tuple[Column, ...] = (
    WAY, BATCH, ("ms a tile", _per_tile), ("ms a call", _spread("ms")), column("share of the peak", "share", share),
    MEMORY, *AGREEMENT, column("Dice lost", "dice_loss", "{:.4f}".format),
)  # fmt: skip
SCAN_COLUMNS: tuple[Column, ...] = (
    column("the scan", "what"), WAY, BATCH, column("tiles", "tiles"), ("seconds", _spread("seconds")),
    column("network's", "network_seconds", number), MEMORY, *AGREEMENT,
)  # fmt: skip
COPY_COLUMNS: tuple[Column, ...] = (
    column("at work together", "what"), column("how many", "count"), WAY, BATCH,
    column("tiles a second", "tiles_per_second", number), column("of one", "scaling", "{:.2f}×".format),
)  # fmt: skip


def gpu_block(figures: Figures | None) -> str:
    """Returns the section on GPUs of docs/performance.md; without a run it says so.

    Raises:
        ValueError: the figures are those of a rehearsal.
    """
    if figures is None:
        return NO_RUN
    if figures["tiny"] or figures["device"] == "cpu":
        raise ValueError("expected a run on a GPU, found a rehearsal, whose figures mean nothing")
    return tables(figures)


def tables(figures: Figures) -> str:
    """Returns everything that a run has measured, and at the end what it has not."""
    rows = [row for stage in figures["stages"].values() for row in stage["rows"]]
    good = [row for row in rows if "error" not in row]
    parts = [_machine(figures), _table([row for row in good if "rate" in row], RATE_COLUMNS)]
    for about in (row for row in {row["title"]: row for row in good if "title" in row}.values()):
        own = [row for row in good if row.get("network") == about["network"]]
        parts += [
            _heading(about),
            _table([row for row in own if "ms_per_roi" in row], TILE_COLUMNS),
            _table([row for row in own if "seconds" in row], SCAN_COLUMNS),
            _table([row for row in own if "scaling" in row], COPY_COLUMNS),
        ]
    missing = _missing(figures["stages"])
    parts += [EXPLANATION, *(["#### Not measured", missing] if missing else [])]
    return "\n\n".join(part for part in parts if part)


def _heading(about: Row) -> str:
    roi = "×".join(map(str, about["roi"]))
    return f"#### {about['title']}, tiles of {roi}, {number(about['gflop'])} × 10⁹ operations a tile"


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    return table(rows, columns) if rows else ""


def _machine(figures: Figures) -> str:
    facts = figures["machine"]
    gpu = f"{facts['gpus']} × {facts['gpu']} ({facts['memory_bytes'] / 2**30:.0f} GiB), " if "gpu" in facts else ""
    cuda = f", CUDA {facts['cuda']}, cuDNN {facts['cudnn']}" if "gpu" in facts else ""
    tiny = " A rehearsal at tiny sizes: its figures mean nothing." if figures["tiny"] else ""
    return (
        f"{gpu}{facts['cpu']}, {facts['cores']} cores; PyTorch {facts['torch']}{cuda}; "
        f"the run took {figures['seconds'] / 60:.1f} minutes.{tiny}"
    )


def _missing(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a list of the rows that failed and of the stages that did not end well; each error once."""
    lines: dict[str, None] = {}
    for name, stage in stages.items():
        for row in stage["rows"]:
            if "error" in row:
                what = ", ".join(str(row[key]) for key in ("what", "way") if key in row)
                batch = f" at a batch of {row['batch']}" if "batch" in row else ""
                lines[f"- {name}: {what}{batch}: {row['error']}"] = None
        if stage["ended"] != "done":
            lines[f"- {name}: {stage['ended']}"] = None
    return "\n".join(lines)
