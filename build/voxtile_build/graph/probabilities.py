"""Checks what a network gives against what its spec says that it gives: logits, or probabilities."""

from __future__ import annotations

from torch import Tensor

from voxtile_build.errors import NetworkError
from voxtile_build.spec.spec import Spec

SUM = 1e-3
"""By how much probabilities of all classes may miss a sum of 1: half precision rounds by as much."""


def check_scores(scores: Tensor, spec: Spec) -> tuple[str, ...]:
    """Check the scores [batch, class, *spatial] of some input.

    Returns:
        What the user should know, a sentence each.

    Raises:
        NetworkError: the spec says probabilities, and they are none.
    """
    promised = spec.network.output == "probabilities"
    fault = _fault(scores, spec.output.regions)
    if promised and fault:
        raise NetworkError(
            f"network.output: expected probabilities, {_wanted(spec.output.regions)}, found {fault}: leave "
            "network.output out for a network that gives logits"
        )
    if promised or fault or scores.shape[1] == 1:
        return ()
    return (
        f"what the network gives looks like probabilities, {_wanted(spec.output.regions)}; if it ends in softmax or "
        "sigmoid, write output = 'probabilities' under [network], else they are taken for logits",
    )


def _wanted(regions: bool) -> str:
    return "values from 0 to 1" if regions else "values from 0 to 1 with a sum of 1 over all classes"


def _fault(scores: Tensor, regions: bool) -> str:
    """Why `scores` are no probabilities; nothing if they may be."""
    low, high = float(scores.min()), float(scores.max())
    if not (low >= -SUM and high <= 1 + SUM):
        return f"values from {low:.3g} to {high:.3g}"
    sums = scores.sum(dim=1)
    if not regions and float((sums - 1).abs().max()) > SUM:
        return f"sums from {float(sums.min()):.3g} to {float(sums.max()):.3g}"
    return ""
