"""The report of a set of models, made of the reports of its models. Knows nothing of servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from voxtile.io.volume import Volume
from voxtile.outputs.report import PartReport, Report, Seconds, certificate_summary, label_volumes, peak_rss_bytes
from voxtile.triton.types import ServedModel


def set_report(
    model: ServedModel,
    volume: Volume,
    labels: NDArray[Any],
    parts: Sequence[Report],
    seconds: Seconds,
    changes: Sequence[str],
) -> Report:
    """Returns the report of a set: what its models did, added up, and the largest of what they took.

    Args:
        model: the set.
        volume: the scan.
        labels: [i, j, k] the mask.
        parts: the report of each model that ran, on the common grid.
        seconds: of everything.
        changes: what the options change, in words.
    """

    def total(name: str) -> int:
        return sum(int(getattr(part, name)) for part in parts)

    def largest(name: str) -> int:
        return max((int(getattr(part, name)) for part in parts), default=0)

    engines = dict.fromkeys(part.engine for part in parts)
    servers = dict.fromkeys(server for part in parts for server in part.servers)
    return Report(
        model=model.card.name,
        version=model.version,
        shape=volume.shape,
        tiles=total("tiles"),
        seconds=seconds,
        bytes_sent=total("bytes_sent"),
        bytes_received=total("bytes_received"),
        peak_rss_bytes=peak_rss_bytes(),
        retries=total("retries"),
        labels=label_volumes(labels, volume.voxel_ml, model.card),
        certificate=certificate_summary(model.card),
        engine=", ".join(engines) or model.card.engine,
        servers=list(servers),
        grid=parts[0].shape if parts else volume.shape,
        tiling=parts[0].tiling if parts else model.card.tiling.model_dump(),
        changes=list(dict.fromkeys([*changes, *(change for part in parts for change in part.changes)])),
        warnings=list(volume.warnings),
        predicted_peak_bytes=largest("predicted_peak_bytes"),
        shared_memory=any(part.shared_memory for part in parts),
        in_flight=largest("in_flight"),
        batch=largest("batch"),
        strips=max((part.strips for part in parts), default=1),
        tiles_sent_again=total("tiles_sent_again"),
        parts=[PartReport(**part.model_dump(include=set(PartReport.model_fields))) for part in parts],
    )
