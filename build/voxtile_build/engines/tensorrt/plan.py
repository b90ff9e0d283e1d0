"""ONNX to a TensorRT plan: parse, check the precision, build.

Written for the API that TensorRT 10 and 11 share. The module is an argument: `tensorrt` on a GPU machine, and
`tensorrt_rtx`, whose builder needs no GPU, in tests.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from voxtile_build.engines.shapes import Shapes
from voxtile_build.engines.tensorrt import timings
from voxtile_build.engines.tensorrt.monitor import Phases, monitor_of, stopped_by_ctrl_c
from voxtile_build.engines.tensorrt.network import Precision, check_network_precision, layers, parse_onnx
from voxtile_build.errors import EngineError
from voxtile_build.progress import teller


class Plan(NamedTuple):
    """A plan's bytes, whether the build was given timings of earlier ones, and what the user should know of it."""

    content: bytes
    timed_before: bool
    warnings: tuple[str, ...]


def build_plan(
    trt: ModuleType,
    model: bytes,
    shapes: Shapes,
    precision: Precision,
    kept: frozenset[str] = frozenset(),
    compatibility: str = "none",
    timings_file: Path | None = None,
) -> Plan:
    """A plan of a self-contained ONNX file that is already converted to `precision`.

    Args:
        trt: the module `tensorrt`, or one with its interface.
        model: the ONNX file.
        shapes: of its inputs, smallest, best and largest.
        precision: what the plan is promised to compute in.
        kept: names of the ONNX nodes that keep a higher precision on purpose.
        compatibility: other GPUs that the plan has to fit, in the words of the spec's `hardware_compatibility`.
        timings_file: what earlier builds measured on this kind of GPU; the timings of this one go there too.

    Raises:
        EngineError: the parser does not understand the file, a layer has another precision than promised, or the
            builder gives no plan, or none for the GPUs that are asked for. It names the layer.
    """
    logger = error_log(trt)
    logger.errors.clear()
    parsed = parse_onnx(trt, model, logger)
    check_network_precision(parsed.network, precision, kept)
    config = plan_config(trt, parsed.builder, shapes, precision, compatibility)
    timed_before = timings_file is not None and timings.attach(config, timings_file)
    phases = Phases(teller())
    config.progress_monitor = monitor = monitor_of(trt, phases)
    logger.errors.clear()  # of timings that could not be used
    with stopped_by_ctrl_c(phases):
        plan = parsed.builder.build_serialized_network(parsed.network, config)
    del monitor  # not before
    if plan is None:
        raise _build_error(parsed.network, logger.errors)
    warnings = () if timings_file is None else timings.keep(config, timings_file)
    return Plan(bytes(plan), timed_before, warnings)


@functools.cache
def error_log(trt: ModuleType) -> Any:
    """The TensorRT logger of this process; its `errors` collects the messages that explain a failed build.

    There is only one: TensorRT keeps a bare pointer to the first logger that it meets, and crashes at the next message
    if that logger is gone.
    """

    class ErrorLog(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return ErrorLog()


def plan_config(
    trt: ModuleType, builder: Any, shapes: Shapes, precision: Precision, compatibility: str = "none"
) -> Any:
    """TensorRT's settings of a build."""
    config = builder.create_builder_config()
    # TensorRT allows TF32 unless it is told otherwise: products of 10 bits would pass as fp32.
    (config.set_flag if precision == "tf32" else config.clear_flag)(trt.BuilderFlag.TF32)
    if compatibility != "none":
        config.hardware_compatibility_level = level = getattr(trt.HardwareCompatibilityLevel, compatibility.upper())
        if config.hardware_compatibility_level != level:  # a release without the level only warns
            raise EngineError(
                f"this TensorRT ({trt.__version__}) builds no plans with hardware_compatibility = {compatibility!r}; "
                "write 'none' and build on each kind of GPU"
            )
    # Otherwise the inspector gives only names of layers, not their types.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for name, sizes in shapes.items():
        profile.set_shape(name, sizes.minimum, sizes.optimum, sizes.maximum)
    config.add_optimization_profile(profile)
    return config


def _build_error(network: Any, errors: list[str]) -> EngineError:
    message = "\n".join(errors) or "the build was stopped"
    # The builder names layers only inside its messages, and a fused region by its first and last layer, which
    # are not to blame. The longest name wins over its own prefixes.
    blamed = re.sub(r"ForeignNode\[[^\]]*\]", "", message)
    named = [layer.name for layer in layers(network) if layer.name and layer.name in blamed]
    where = f" at layer '{max(named, key=len)}'" if named else ""
    return EngineError(f"TensorRT built no engine{where}: {message}")
