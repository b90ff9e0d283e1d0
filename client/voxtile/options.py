"""Defines how a scan is segmented, and puts into words which choices may change the result.

Knows nothing of servers' answers or of scans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

from voxtile.card import Card, Tiling
from voxtile.errors import InputError
from voxtile.io.dicom.choice import ANY_SERIES, SeriesChoice
from voxtile.io.geometry import Triple
from voxtile.io.given import Given
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.retry import RetryPolicy
from voxtile.triton.transport import DEFAULT_IN_FLIGHT

MIB = 1024**2


@dataclass(frozen=True)
class Options:
    """How to segment. The defaults give the model's own result exactly.

    What may change the result is named in the report.

    Attributes:
        overlap: the fraction of the ROI that neighbouring tiles share; None for the model's. Changes the result.
        mode: how overlapping tiles are weighted; None for the model's. Changes the result.
        mirror: whether to average over the model's test-time flips, if it has any. False changes the result.
        sw_batch_size: the most tiles in one request; None for the most that the server takes. Reduced for large tiles.
        in_flight: the most requests in flight to one server. Reduced for large tiles.
        skip_empty: whether to leave out tiles outside the body, by the card's rule. May change the result.
        spot_check: how many of the tiles left out are sent all the same, to count those that would get a label.
        max_ram_mib: the most memory to take for one scan, in MiB; None for no limit. It is kept by fewer tiles at once,
            then by working in strips; the labels stay the same.
        half_scores: whether scores may be summed in half precision where max_ram_mib requires it. Changes the result.
        keep_scores: whether to return the scores on the scan's own grid too.
        postprocessing: whether labels are cleaned: by an nnU-Net model's learned post-processing, or by the steps of
            a model's chain. False changes the result.
        nan: what replaces voxels that are NaN; None to refuse such a scan. Changes the result, as do the next two.
        posinf: what replaces voxels that are infinite, or above float32; None to refuse them.
        neginf: what replaces voxels that are minus infinity, or below float32; None to refuse them.
        orientation: where the axes of a scan run whose file does not say it, such as "LAS" (to the Left, the Anterior,
            the Superior); None to refuse such a scan.
        spacing: millimetres between neighbours along the axes of a scan whose file does not say it; None to refuse it.
        dicom: which series of a DICOM study is meant, and what is done about missing slices and a tilted gantry.
        connection: how to reach the servers.
        retry_policy: retry limits.

    Raises:
        InputError: a number that no segmentation could use.
    """

    overlap: float | None = None
    mode: Literal["constant", "gaussian"] | None = None
    mirror: bool = True
    sw_batch_size: int | None = None
    in_flight: int = DEFAULT_IN_FLIGHT
    skip_empty: bool = False
    spot_check: int = 0
    max_ram_mib: float | None = None
    half_scores: bool = False
    keep_scores: bool = False
    postprocessing: bool = True
    nan: float | None = None
    posinf: float | None = None
    neginf: float | None = None
    orientation: str | None = None
    spacing: Triple | None = None
    dicom: SeriesChoice = ANY_SERIES
    connection: ConnectionConfig = field(default_factory=ConnectionConfig)
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        check_count("in_flight", self.in_flight, least=1)
        check_count("spot_check", self.spot_check, least=0)
        if self.sw_batch_size is not None:
            check_count("sw_batch_size", self.sw_batch_size, least=1)
        if self.max_ram_mib is not None and not 0 < self.max_ram_mib < math.inf:
            raise InputError(f"expected --max-ram above 0 MiB, and none for no limit, found {self.max_ram_mib:g}")

        _ = self.given  # says what is wrong with it

    @property
    def given(self) -> Given:
        """What is said of a scan beside what its files say."""
        return Given(self.nan, self.posinf, self.neginf, self.orientation, self.spacing, self.dicom)

    @property
    def max_ram_bytes(self) -> int | None:
        return None if self.max_ram_mib is None else int(self.max_ram_mib * MIB)


def check_count(name: str, value: Any, *, least: int) -> None:
    """Raises InputError for an option that counts something and is no whole number, or is below `least`."""
    if not isinstance(value, Integral) or value < least:
        raise InputError(f"expected a whole number of at least {least} for {name}, found {value!r}")


def chosen_tiling(card: Card, options: Options) -> Tiling:
    """The card's tiling, with the overlap and mode of the options.

    Raises:
        InputError: an option has a value outside its range, or the model takes whole slices, which do not overlap.
    """
    wanted = _changed_tiling(card, options)
    if wanted and card.multiple is not None:
        raise InputError(f"model {card.name!r} takes whole slices, which do not overlap; leave out {', '.join(wanted)}")
    try:
        return Tiling.model_validate({**card.tiling.model_dump(), **wanted})
    except ValueError as error:
        found = ", ".join(f"{key} {value!r}" for key, value in wanted.items())
        raise InputError(f"overlap lies in [0, 1) and mode is constant or gaussian; found {found}") from error


def changes_in_words(card: Card, options: Options) -> list[str]:
    """What the options change that may change the result; empty for the model's own semantics."""
    wanted = _changed_tiling(card, options)
    changes = [f"{key} {getattr(card.tiling, key)} -> {value}" for key, value in wanted.items()]
    if card.mirror_axes and not options.mirror:
        changes.append("mirroring off")
    if options.skip_empty:
        changes.append("empty tiles skipped")
    if card.nnunet and card.nnunet.get("postprocessing") and not options.postprocessing:
        changes.append("learned post-processing off")
    if card.finishing is not None and card.finishing.cleans and not options.postprocessing:
        changes.append("cleaning of labels off")
    return changes


def _changed_tiling(card: Card, options: Options) -> Mapping[str, Any]:
    return {
        key: value
        for key, value in (("overlap", options.overlap), ("mode", options.mode))
        if value is not None and value != getattr(card.tiling, key)
    }
