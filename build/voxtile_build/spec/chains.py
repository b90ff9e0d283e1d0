"""What a spec's chains say about its other tables, and what they may not say twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from voxtile.transforms.base import Transform, several
from voxtile.transforms.finishing import Finishing
from voxtile.transforms.postprocessing import KeepLargestConnectedComponent, LabelFilter
from voxtile.transforms.preprocessing import CropForeground, NormalizeIntensity
from voxtile_build.spec.explain import ordinal
from voxtile_build.spec.input import Input
from voxtile_build.spec.output import Output
from voxtile_build.spec.preparation import Preparation

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
    if output.get("regions") is not True and isinstance(output.get("labels"), list | tuple):
        output["labels"] = _mapped(output["labels"], steps)
    ends = [names.index(name) for name in ("Invert", "AsDiscrete") if name in names]
    early = [step for step in steps[: min(ends, default=0)] if step.get("transform") == "Activations"]
    kind = "sigmoid" if output.get("regions") is True else "softmax"
    if early and early[0].get(kind) is True and output.get("scores", "logits") == "logits":
        output.setdefault("activation", kind)


def _mapped(labels: Sequence[Any], steps: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
    """Labels that are names alone, with the values that MapLabelValue gives them."""
    values: dict[Any, Any] = {}
    for step in steps:
        pairs = step.get("orig_labels"), step.get("target_labels")
        if all(isinstance(numbers, list | tuple) for numbers in pairs):
            values |= {orig: target for orig, target in zip(*pairs, strict=False) if isinstance(orig, int)}  # type: ignore[arg-type]
    return tuple(
        {"name": label, "value": values.get(index, index)} if isinstance(label, str) else label
        for index, label in enumerate(labels)
    )


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
    names = [type(step).__name__ for step in steps]
    if names.count("Spacing") > 1:
        raise ValueError(
            "preprocessing: expected Spacing once, found it several times: the way back would not be exact"
        )
    for number, step in enumerate(steps, 1):
        where = f"the {ordinal(number)} [[preprocessing]], {type(step).__name__}"
        if isinstance(step, NormalizeIntensity):
            each = [isinstance(numbers, tuple) for numbers in (step.subtrahend, step.divisor)]
            if any(each) and None in (step.subtrahend, step.divisor) and not step.channel_wise and channels > 1:
                raise ValueError(f"{where}: a number for each channel goes with channel_wise = true")
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


def check_values_sent(preparation: Preparation, given: Input, background: bool) -> None:
    """Checks that the values which the client sends are those that other keys speak of.

    Args:
        preparation: what the client does.
        given: the table [input].
        background: whether there is a limit for what is outside the body.

    Raises:
        ValueError: names the key and the step.
    """
    if not preparation.value_steps:
        return
    step = type(preparation.value_steps[0]).__name__
    if given.dtype == "int16":
        raise ValueError(
            f"input.dtype = 'int16' is for values as they are stored, and the client carries out {step} before it "
            "sends them: use fp16 or fp32"
        )
    if background:
        raise ValueError(
            f"background_at_most is in the scan's units, and the client carries out {step} before it looks: leave it "
            "out"
        )


def check_finishing(finishing: Finishing, steps: Sequence[Transform], output: Output, resampled: bool) -> None:
    """Checks that a chain of post-processing has a meaning for the labels.

    Args:
        finishing: what the chain amounts to.
        steps: the chain.
        output: the labels.
        resampled: whether the scan is resampled.

    Raises:
        ValueError: names the step, and what to write.
    """
    regions, count = finishing.threshold is not None, len(output.labels)
    if output.regions != regions:
        found = "a threshold" if regions else "argmax"
        raise ValueError(
            f"output.regions = {str(output.regions).lower()} and AsDiscrete with {found} contradict each other: leave "
            "regions out"
        )
    if output.scores == "logits" and output.activation != finishing.before:
        raise ValueError(
            f"output.activation = {output.activation!r}, and postprocessing has {finishing.before!r} before Invert: "
            "leave activation out"
        )
    if finishing.decided_first and resampled and not finishing.nearest:
        raise ValueError(
            "postprocessing: Invert comes after AsDiscrete and would blend numbers of labels: write nearest_interp = "
            "true, or let Invert come before AsDiscrete"
        )
    if (finishing.cleans or finishing.decided_first) and output.scores == "foreground":
        raise ValueError("postprocessing counts the network's channels, and scores = 'foreground' returns one alone")
    _check_map(finishing, output)
    for step in steps:
        _check_cleaning(step, regions, count)


def _check_map(finishing: Finishing, output: Output) -> None:
    values = [label.value for label in output.labels]
    if not finishing.values:
        return
    if output.regions:
        raise ValueError("postprocessing: MapLabelValue is for classes; give regions their values in output.labels")
    wanted = [finishing.values.get(number, number) for number in range(len(values))]
    if values != wanted:
        raise ValueError(
            f"postprocessing: MapLabelValue gives the labels the values {wanted}, and output.labels {values}: write "
            "names alone into output.labels"
        )


def _check_cleaning(step: Transform, regions: bool, count: int) -> None:
    name = f"postprocessing: {type(step).__name__}"
    if isinstance(step, LabelFilter) and regions:
        raise ValueError(f"{name} is for classes; regions have a mask each")
    if isinstance(step, KeepLargestConnectedComponent) and step.is_onehot is not None:
        onehot = regions and count > 1
        if step.is_onehot != onehot:
            raise ValueError(f"{name}: labels lie in {'channels' if onehot else 'one channel'}: leave is_onehot out")
    given = getattr(step, "applied_labels", None)
    most = max(count - 1, 1)
    wrong = [number for number in (several(given) if given is not None else ()) if number > most]
    if wrong:
        raise ValueError(f"{name}: expected applied_labels from 0 to {most}, the network's channels, found {wrong}")
