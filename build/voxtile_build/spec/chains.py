"""What a spec's chains say about its other tables, and what they may not say twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from voxtile.transforms.base import Transform
from voxtile.transforms.preprocessing import CropForeground, NormalizeIntensity
from voxtile_build.spec.input import Input

SHORT_KEYS = ("orientation", "spacing", "intensity")
"""Keys of [input] that a chain replaces."""


def with_chains(data: dict[str, Any]) -> dict[str, Any]:
    """The tables of a spec, as they were written, with what follows from its chains and from other names of tables.

    Wrong types are left for validation to find.

    Raises:
        ValueError: something is said twice.
    """
    data = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    if "inferer" in data:
        if "tiling" in data:
            raise ValueError("expected [inferer], or its older name [tiling], found both: put all keys under [inferer]")
        data["tiling"] = data.pop("inferer")
    _check_short_keys(data)
    _take_batch_size(data)
    _take_scores(data)
    if data.get("postprocessing"):
        _take_decision(data)
    return data


def _check_short_keys(data: dict[str, Any]) -> None:
    given = data.get("input")
    short = {key: given[key] for key in SHORT_KEYS if key in given} if isinstance(given, dict) else {}
    # A spec that was written by `model_dump` has every key, with its default.
    said = [key for key, value in short.items() if value not in (None, {"rule": "none"})]
    if data.get("preprocessing") and said:
        raise ValueError(
            f"expected [[preprocessing]], or {', '.join(f'input.{key}' for key in SHORT_KEYS)}, found both: write "
            f"{' and '.join(said)} as {'a step' if len(said) == 1 else 'steps'} of the chain"
        )


def _take_batch_size(data: dict[str, Any]) -> None:
    tiling, serving = data.get("tiling"), data.setdefault("serving", {})
    size = tiling.get("sw_batch_size") if isinstance(tiling, dict) else None
    if size is None or not isinstance(serving, dict) or type(size) is not int or size < 1:
        return
    if serving.setdefault("max_batch_size", size) != size:
        raise ValueError(
            f"sw_batch_size {size} and serving.max_batch_size {serving['max_batch_size']} are two numbers for the "
            "tiles in one run: leave out one"
        )


def _take_scores(data: dict[str, Any]) -> None:
    network, output = data.get("network"), data.get("output")
    if isinstance(network, dict) and isinstance(output, dict) and network.get("output") == "probabilities":
        output.setdefault("scores", "probabilities")


def _take_decision(data: dict[str, Any]) -> None:
    """Regions and the activation, as the chain has them."""
    output, steps = data.get("output"), list(_plain(data["postprocessing"]))
    if not isinstance(output, dict):
        return
    names = [step.get("transform") for step in steps]
    if any(step.get("transform") == "AsDiscrete" and step.get("threshold") is not None for step in steps):
        output.setdefault("regions", True)
    ends = [names.index(name) for name in ("Invert", "AsDiscrete") if name in names]
    early = [step for step in steps[: min(ends, default=0)] if step.get("transform") == "Activations"]
    kind = "sigmoid" if output.get("regions") is True else "softmax"
    if early and early[0].get(kind) is True and output.get("scores", "logits") == "logits":
        output.setdefault("activation", kind)


def _plain(steps: Any) -> Iterator[dict[str, Any]]:
    """Steps as dictionaries; what is none is left out."""
    for step in steps if isinstance(steps, list | tuple) else ():
        if isinstance(step, Transform):
            yield step.model_dump()
        elif isinstance(step, dict):
            yield step


def check_preprocessing(steps: Sequence[Transform], given: Input) -> None:
    """Checks that the numbers of a chain fit the channels.

    Raises:
        ValueError: names the step.
    """
    channels = len(given.channels)
    for place, step in enumerate(steps):
        where = f"preprocessing[{place}] {type(step).__name__}"
        if isinstance(step, NormalizeIntensity):
            for key in ("subtrahend", "divisor"):
                numbers = getattr(step, key)
                if isinstance(numbers, tuple) and len(numbers) != channels:
                    raise ValueError(
                        f"{where}: expected {key} as one number, or one for each of {channels} channels, found "
                        f"{len(numbers)}"
                    )
        if isinstance(step, CropForeground) and any(index >= channels for index in step.channel_indices or ()):
            raise ValueError(
                f"{where}: expected channel_indices from 0 to {channels - 1}, found {list(step.channel_indices or ())}"
            )
