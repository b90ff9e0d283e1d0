"""How far fp32 PyTorch, the reference of all certificates, is itself from float64, on the tiles that are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from voxtile_build.arrays import Array
from voxtile_build.evaluation.evaluate import compare
from voxtile_build.evaluation.summary import summary
from voxtile_build.evaluation.tiles import Tile, tile_inputs
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.networks.float64 import in_float64
from voxtile_build.spec.acceptance import Acceptance
from voxtile_build.spec.spec import Spec

TIMES_PYTORCH = 3
"""How many times as far from fp32 PyTorch as that is from float64 an engine may be. It is then itself at most four
times as far from float64, whatever the network makes of rounding."""

RAISED = {"max_abs_error": "max_abs_error", "max_logit_error": "max_logit_error", "max_score_error": "score_error"}
"""Limits on errors of scores, each with its metric. Limits on masks are not raised."""


def reference_error(wrapper: Wrapper, spec: Spec, tiles: Sequence[tuple[Tile, Array]]) -> dict[str, float]:
    """The metrics of fp32 PyTorch against float64; nothing where the network cannot be run in float64.

    Args:
        wrapper: the network.
        spec: the model.
        tiles: each with what fp32 PyTorch gives, [score, *roi].
    """
    judged = [(tile, found) for tile, found in tiles if tile.roi.min() != tile.roi.max()]
    records = []
    for tile, found in judged:
        truth = _truth(wrapper, spec, tile)
        if truth is None:
            return {}
        spacing = (1.0,) * (found.ndim - 1)  # distances are not used
        records.append(compare(truth, found, spec, "PyTorch", f"tile '{tile.name}'", spacing))
    return summary(records, []) if records else {}


def raised(limits: Mapping[str, float | None], wanted: Acceptance, own: Mapping[str, float]) -> dict[str, float | None]:
    """`limits` with room for the errors of PyTorch itself, where the spec does not set them.

    Args:
        limits: of the certificate.
        wanted: of the spec.
        own: as `reference_error` gives them.
    """
    result = dict(limits)
    for name, metric in RAISED.items():
        limit = limits.get(name)
        if limit is not None and metric in own and getattr(wanted, name) is None:
            result[name] = max(limit, TIMES_PYTORCH * own[metric])
    return result


def _truth(wrapper: Wrapper, spec: Spec, tile: Tile) -> Array | None:
    """Scores [score, *roi] of one tile in float64, rounded to their type at the end."""
    feed = tile_inputs(spec, tile.roi[None], tile.statistics[None])
    with torch.inference_mode():
        image = wrapper.image(*(torch.from_numpy(feed[name]) for name in ("roi", "intensity") if name in feed))
    logits = in_float64(wrapper.network, image.clone())
    if logits is None:
        return None
    with torch.inference_mode():
        scores: Array = wrapper.finish(logits)[0].numpy()
    return scores
