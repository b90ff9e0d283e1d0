"""The network as it is served: a stored ROI in, the wanted scores out, and everything between in one graph.

In plain PyTorch this module is also the fp32 reference for the engines. Knows nothing of ONNX or of engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from voxtile_build.errors import NetworkError, reason_of
from voxtile_build.graph.pointwise import pointwise
from voxtile_build.graph.probabilities import check_scores
from voxtile_build.networks.fitting_sizes import fitting_step, rounded_up
from voxtile_build.spec.input import IntensityFixed, IntensityPercentile, IntensityRange, IntensityZscore
from voxtile_build.spec.output import Output
from voxtile_build.spec.spec import Spec
from voxtile_build.spec.spec import input_names as input_names

MARK_AT_MOST = {"fp32": -3.2e38, "fp16": -65250.0, "int16": -32767.5}
"""Values at or below this mark padding. It lies above the value that is sent for padding, because an engine may round
its input (OpenVINO does so in bf16 with free shapes), and below every value of a scan."""

FREE_SIZES = ((1, 1), (3, 2), (1, 5))
"""Sizes that networks with free sizes are tried on, in steps of `multiple`: the smallest, and odd numbers of steps."""

SEED = 5
"""Of the noise that a network is tried on."""

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int16": torch.int16, "uint8": torch.uint8}


class Wrapper(nn.Module):
    """`roi` [batch, channel, *spatial] (and `intensity` [batch, channel, 2]) -> `scores` [batch, score, *spatial].

    Voxels with the input type's lowest value are outside the scan. After normalisation they are `tiling.cval` of the
    spec, by default 0, as MONAI and nnU-Net pad. `intensity` holds what to subtract and what to divide by, in fp32; a
    divisor of 0 (a scan of one value) counts as 1, as in MONAI's NormalizeIntensity.
    """

    def __init__(self, network: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.network = network
        self.normalise = _normaliser(spec)
        self.steps = nn.Sequential(*(pointwise(step, spec) for step in spec.preparation.graph))
        self.finish = Finish(spec.output, spec.network.output)
        self.mark = MARK_AT_MOST[spec.input.dtype]
        self.cval = spec.tiling.cval
        self.warnings: tuple[str, ...] = ()

    def forward(self, roi: Tensor, intensity: Tensor | None = None) -> Tensor:
        scores: Tensor = self.finish(self.logits(self.image(roi, intensity)))
        return scores

    def logits(self, image: Tensor) -> Tensor:
        """What the network gives for its image: [batch, class, *spatial]."""
        return _one_output(self.network(image))

    def image(self, roi: Tensor, intensity: Tensor | None = None) -> Tensor:
        """What the network gets: [batch, channel, *spatial] float32, normalised, `tiling.cval` outside the scan."""
        # Exact for every input type. ONNX Runtime cannot compare 16-bit integers.
        values = roi.to(torch.float32)
        normal = self.normalise(values) if intensity is None else self.normalise(values, intensity)
        normal = self.steps(normal)
        return torch.where(values <= self.mark, self.cval, normal)


def _normaliser(spec: Spec) -> nn.Module:
    rule, axes = spec.preparation.intensity, len(spec.tiling.roi_size)
    if isinstance(rule, IntensityRange):
        return Range(rule)
    if isinstance(rule, IntensityFixed):
        return Fixed(rule, axes)
    if isinstance(rule, IntensityZscore):
        return WholeScan(axes, clip=False, keep_zero=rule.keep_zero)
    if isinstance(rule, IntensityPercentile):
        return WholeScan(axes, clip=rule.clip)
    return nn.Identity()


class Range(nn.Module):
    """MONAI's ScaleIntensityRange, its operations in its order."""

    def __init__(self, rule: IntensityRange) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, values: Tensor) -> Tensor:
        rule = self.rule
        values = (values - rule.a_min) / (rule.a_max - rule.a_min)
        values = values * (rule.b_max - rule.b_min) + rule.b_min
        if not rule.clip:
            return values
        return values.clamp(min(rule.b_min, rule.b_max), max(rule.b_min, rule.b_max))


class Fixed(nn.Module):
    """`(clip(x, lower, upper) - mean) / std`, with one number for each channel: nnU-Net's CTNormalization."""

    mean: Tensor
    std: Tensor
    lower: Tensor | None
    upper: Tensor | None

    def __init__(self, rule: IntensityFixed, axes: int) -> None:
        super().__init__()
        for name in ("mean", "std", "lower", "upper"):
            self.register_buffer(name, _by_channel(getattr(rule, name), axes))

    def forward(self, values: Tensor) -> Tensor:
        if self.lower is not None:
            values = torch.maximum(values, self.lower)
        if self.upper is not None:
            values = torch.minimum(values, self.upper)
        return (values - self.mean) / self.std


class WholeScan(nn.Module):
    """`(x - subtract) / divide` with statistics of the whole scan from the client; with `keep_zero`, 0 stays 0."""

    def __init__(self, axes: int, *, clip: bool, keep_zero: bool = False) -> None:
        super().__init__()
        self.ones = (1,) * axes
        self.clip, self.keep_zero = clip, keep_zero

    def forward(self, values: Tensor, intensity: Tensor) -> Tensor:
        batch, channels = intensity.shape[0], intensity.shape[1]
        subtract, divide = (intensity[:, :, index].reshape(batch, channels, *self.ones) for index in (0, 1))
        normal = (values - subtract) / torch.where(divide == 0, 1.0, divide)
        if self.keep_zero:
            normal = torch.where(values == 0, 0.0, normal)
        return normal.clamp(0.0, 1.0) if self.clip else normal


class Finish(nn.Module):
    """What the network gives [batch, class, *spatial], fp32 -> scores of the spec's kind and type.

    A network that gives probabilities gets no second softmax or sigmoid.
    """

    def __init__(self, output: Output, given: Literal["logits", "probabilities"] = "logits") -> None:
        super().__init__()
        self.output, self.given = output, given

    def forward(self, logits: Tensor) -> Tensor:
        output = self.output
        if output.scores == "logits":
            return logits.to(TORCH_DTYPES[output.dtype])
        if output.scores == "labels":
            return logits.argmax(dim=1, keepdim=True).to(torch.uint8)
        chosen = logits
        if self.given == "logits":
            chosen = logits.sigmoid() if output.regions else logits.softmax(dim=1)
        if output.scores == "foreground":
            chosen = chosen[:, output.foreground_index : output.foreground_index + 1]
        if output.dtype == "uint8":
            chosen = (chosen * output.scale).round()
        return chosen.to(TORCH_DTYPES[output.dtype])


def _by_channel(values: Sequence[float] | None, axes: int) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float32).reshape(1, -1, *(1,) * axes)


def _one_output(logits: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(logits, Tensor):
        return logits
    if len(logits) == 1:
        return logits[0]
    raise NetworkError(
        f"expected one output of the network, found {len(logits)}; choose one with network.head (0: the first, -1: "
        "the last), or switch deep supervision off in network.args"
    )


def example_inputs(spec: Spec, batch: int) -> tuple[Tensor, ...]:
    """Inputs of the right shapes and types, all zeros: `roi`, and `intensity` if the rule takes it."""
    roi = torch.zeros(batch, *spec.roi_shape, dtype=TORCH_DTYPES[spec.input.dtype])
    if not spec.whole_scan_intensity:
        return (roi,)
    return roi, torch.tensor([0.0, 1.0]).expand(batch, len(spec.input.channels), 2).contiguous()


def wrap(network: nn.Module, spec: Spec) -> Wrapper:
    """The wrapped network in evaluation mode. It is tried on a ROI of noise, and on other sizes if sizes are free.

    Raises:
        NetworkError: the network refuses the ROI, has another number of classes than labels, or does not give the
            probabilities that the spec promises.
    """
    wrapper = Wrapper(network, spec).eval()
    roi, *free = tried_sizes(spec)
    scores = _try(network, spec, roi, "inferer.roi_size", "")
    wrapper.warnings = check_scores(scores, spec)
    for sizes in free:
        advice = f"multiple = {2 * (spec.tiling.multiple or 1)} leaves out the smallest"
        _try(network, spec, sizes, "inferer.multiple", advice)
    return wrapper


def tried_sizes(spec: Spec) -> list[tuple[int, ...]]:
    """The sizes of an image that the network is tried on: the ROI, and others if sizes are free."""
    step = spec.tiling.multiple
    free = [] if step is None else [tuple(count * step for count in counts) for counts in FREE_SIZES]
    return [spec.tiling.roi_size, *free]


def _try(network: nn.Module, spec: Spec, roi: tuple[int, ...], key: str, advice: str) -> Tensor:
    """What the network gives for noise. The message of the NetworkError begins with the spec's `key`."""
    noise = torch.randn(1, len(spec.input.channels), *roi, generator=torch.Generator().manual_seed(SEED))
    try:
        with torch.inference_mode():
            logits = _one_output(network(noise))
    except NetworkError:
        raise
    except Exception as error:  # networks raise many kinds of errors
        reason = reason_of(error)
        raise NetworkError(
            f"{key}: the network refuses a ROI of {list(roi)}: {reason}; {_advice(reason, network, spec, advice)}"
        ) from error
    if tuple(logits.shape[2:]) != roi:
        head = "network.head chooses another output; " if spec.network.head is not None else ""
        raise NetworkError(
            f"{key}: expected scores on the grid of the ROI {list(roi)}, the network gives "
            f"{list(logits.shape[2:])}; {head}{advice or _sizes(network, spec)}"
        )
    expected = (1, len(spec.output.labels), *roi)
    if tuple(logits.shape) != expected:
        raise NetworkError(
            f"output.labels: expected the network to give {list(expected)} [batch, label, *roi], "
            f"found {list(logits.shape)}; labels, regions or network.args are wrong"
        )
    return logits


def _advice(reason: str, network: nn.Module, spec: Spec, usual: str) -> str:
    """What to do about a network that refuses its ROI, as far as its own words tell."""
    size = spec.network.args.get("img_size")
    roi = list(spec.tiling.roi_size)
    if size is not None and (list(size) if isinstance(size, list | tuple) else [size] * len(roi)) != roi:
        return f"roi_size and network.args.img_size must be the same, found img_size {size}"
    if "positional argument" in reason or "missing value for argument" in reason:
        return "the network takes several inputs; serve one that takes the image alone, [batch, channel, *roi]"
    return usual or _sizes(network, spec)


def _sizes(network: nn.Module, spec: Spec) -> str:
    """Which sizes of a ROI to choose."""
    roi = spec.tiling.roi_size
    step = fitting_step(network, len(spec.input.channels), roi)
    if step is None:
        return "choose sizes that its strides divide"
    return f"choose sizes that its strides divide: multiples of {step}, such as {list(rounded_up(roi, step))}"
