"""Says in tables what made a mask: its passport, and the certificate of the engine. Knows nothing of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voxtile.card import MOST_NAMES, Certificate
from voxtile.outputs.passport import Passport, Teacher, UsedModel
from voxtile.outputs.report import Report

Rows = list[tuple[str, str]]
"""Names, and what each of them is."""

NOT_KNOWN = "not known"


def passports(passport: Passport) -> list[tuple[str, Rows]]:
    """A passport in words, and each model behind the one that was asked for, with headings."""
    own = [
        *_used(passport),
        ("Server", f"Triton {passport.triton}" if passport.triton else NOT_KNOWN),
        ("Client", f"Voxtile {passport.voxtile}"),
        ("Tiling", ", ".join(f"{key} {_shown(value)}" for key, value in passport.tiling.items())),
        ("Asked for, may change the result", "; ".join(passport.changes) or "nothing"),
        ("Digest of the scan", passport.scan_sha256),
        ("Digest of the mask", passport.mask_sha256),
    ]
    others = [(f"Model behind it: {other.role}", _used(other)) for other in passport.others]
    return [(heading, _filled(rows)) for heading, rows in (("Passport: what made this mask", own), *others)]


def _used(model: UsedModel) -> Rows:
    return [
        ("Model", model.model),
        ("Version", model.version),
        ("Engine", model.engine),
        ("Precision", model.precision or NOT_KNOWN),
        ("Digest of the weights", model.weights_sha256),
        *_teacher(model.student_of),
        ("Digest of the graph", model.onnx_sha256),
        ("Digest of the method", model.method_sha256),
        ("Digest of the certificate", model.certificate_sha256 or "no certificate"),
    ]


def _teacher(teacher: Teacher | None) -> Rows:
    if teacher is None:
        return []
    return [
        ("Student of", teacher.teacher),
        ("Agreement with its teacher", teacher.agreement),
        ("Digest of the teacher's weights", teacher.weights_sha256),
    ]


def _filled(rows: Rows) -> Rows:
    return [(name, text) for name, text in rows if text]


def certificates(report: Report) -> list[tuple[str, Rows]]:
    """The certificates of all engines that took part, each with a heading."""
    if not report.parts:
        return [("Certificate", certificate_rows(report.certificate))]
    return [(f"Certificate of {part.model}", certificate_rows(part.certificate)) for part in report.parts]


def certificate_rows(summary: Mapping[str, Any]) -> Rows:
    """The summary of a certificate, as a report has it, in words."""
    engine = ("Engine", str(summary.get("engine", "")) or NOT_KNOWN)
    if not summary.get("sha256"):
        return [engine, ("Result", "this engine has no certificate: how far it is from the network is not known")]
    found = Certificate.model_validate({key: value for key, value in summary.items() if key != "engine"})
    return _filled(
        [
            engine,
            ("Result", "accepted: the engine met all limits" if found.accepted else "NOT accepted: a limit was missed"),
            ("Precision", found.precision),
            ("Lowest Dice of a label, against fp32", f"{found.dice_min:.6g}"),
            ("Voxels whose label changes", f"{100 * found.changed_fraction:.3g} %"),
            ("Largest error of a score", f"{found.max_abs_error:.3g}"),
            ("Measured on", _device(found.device_name, found.device)),
            ("Runs on", found.serves_on or NOT_KNOWN),
            ("Also verified on", ", ".join(found.verified_on)),
            ("Labels that its samples hardly show", _first(found.unseen_labels)),
            ("What it does not prove", "; ".join(found.reservations)),
            ("Digest", found.sha256),
        ]
    )


def _device(name: str, kind: str) -> str:
    return f"{name} ({kind})" if name and kind else name or kind or NOT_KNOWN


def _first(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
    return " × ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
