"""Write the figures of the model cards from the evaluation and the training log, so that they cannot drift.

`python -m models.training.model_cards NAME` replaces what stands between the two marks in models/NAME.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.training.brain_data import LABELS

BEGIN, END = "<!-- figures: written by models/training/model_cards.py -->", "<!-- end of figures -->"
MODELS = Path(__file__).parent.parent
NAMES = ("brain-swinunetr", "brain-unet")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table; the first column is aligned to the left, figures to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in (head, rule, *rows))


def _dice(scores: Mapping[str, float]) -> list[str]:
    return [f"{scores[tissue]:.4f}" for tissue in LABELS[1:]]


def figures(evaluation: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    """Returns the card's figures in Markdown, from a NAME.evaluation.json and the lines of a NAME.jsonl."""
    return "\n\n".join(
        [
            "### The file",
            _file(evaluation),
            "### Training",
            _training(log),
            "### Dice on the template",
            _whole_scan(evaluation),
            "### Dice in the held-out block of changed scans",
            _perturbed(evaluation),
        ]
    )


def _file(evaluation: Mapping[str, Any]) -> str:
    weights = evaluation["weights"]
    arguments = ", ".join(f"{key}={_literal(value)}" for key, value in evaluation["network"].items())
    rows = [
        ("file", f"`{weights['file']}`"),
        ("SHA-256", f"`{weights['sha256']}`"),
        ("bytes", f"{weights['bytes']:,}"),
        ("parameters", f"{evaluation['parameters']:,}"),
        ("constructor's arguments", f"`{arguments}`"),
    ]
    return table(("", ""), rows).replace("---:", "---")


def _literal(value: object) -> str:
    # JSON has no tuples; the constructors are documented with them.
    return repr(tuple(value)) if isinstance(value, list) else json.dumps(value)


def _training(log: Sequence[Mapping[str, Any]]) -> str:
    starts = [place for place, line in enumerate(log) if "plan" in line]
    runs = [log[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    columns = [_run(run) for run in runs]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    runs_table = table(("", *(f"run {number}" for number in range(1, len(runs) + 1))), rows)
    return "\n\n".join([runs_table, *(_fit(line) for line in log if "fit_head" in line)])


def _fit(line: Mapping[str, Any]) -> str:
    fitted, entropy = line["fit_head"], line["cross_entropy"]
    return (
        f"Last layer fitted anew on {fitted['voxels']:,} voxels of {fitted['patches']} patches "
        f"(seed {fitted['seed']}): cross-entropy {entropy['before']:.4f} → {entropy['after']:.4f}."
    )


def _run(log: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    plan, versions = log[0]["plan"], log[0]["versions"]
    curve = [line for line in log if "loss" in line]
    return {
        "seed": plan["seed"],
        "starts from": "chance" if log[0].get("started_from") is None else "the run before",
        "steps × patches of 64³": f"{curve[-1]['step']:,} × {plan['batch']}",
        "minutes (2 CPU cores, shared)": f"{curve[-1]['seconds'] / 60:.1f}",
        "highest learning rate": plan["learning_rate"],
        "loss (Dice + cross-entropy), first 5 lines of the log": _mean_loss(curve[:5]),
        "loss, last 5 lines": _mean_loss(curve[-5:]),
        "torch, MONAI": f"{versions['torch']}, {versions['monai']}",
    }


def _mean_loss(lines: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(line['loss'] for line in lines) / len(lines):.3f}"


def _whole_scan(evaluation: Mapping[str, Any]) -> str:
    scores = evaluation["whole_scan"]["dice"]
    rows = [
        ("**held-out block**", *_dice(scores["held out"])),
        ("where training could look", *_dice(scores["seen"])),
        ("everywhere", *_dice(scores["everywhere"])),
    ]
    return table(("", *LABELS[1:]), rows) + _in_air(evaluation["whole_scan"].get("tissue in air"))


def _in_air(voxels: int | None) -> str:
    return "" if voxels is None else f"\n\nVoxels called tissue where the scan is 0, which is air: {voxels:,}."


def _perturbed(evaluation: Mapping[str, Any]) -> str:
    alone = evaluation["thresholds"]["dice"]
    rows = [(name, *_dice(scores), *_dice(alone[name])) for name, scores in evaluation["perturbed"].items()]
    head = ("scan", *LABELS[1:], *(f"two thresholds: {tissue}" for tissue in LABELS[1:]))
    return table(head, rows)


def read(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the evaluation and the training log that are kept beside this module."""
    folder = MODELS / "training"
    evaluation: dict[str, Any] = json.loads((folder / f"{name}.evaluation.json").read_text())
    log = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return evaluation, log


def with_figures(card: str, section: str) -> str:
    """Returns the card's text with what stands between the marks replaced.

    Raises:
        ValueError: the card does not hold both marks, in order.
    """
    before, begin, rest = card.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected {BEGIN!r} and then {END!r} in the model card")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the figures of the cards of the named models, or of all if none is named."""
    parser = argparse.ArgumentParser(description="Write the figures into models/NAME.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(NAMES)}")
    for name in parser.parse_args(arguments).names or NAMES:
        card = MODELS / f"{name}.md"
        card.write_text(with_figures(card.read_text(), figures(*read(name))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
