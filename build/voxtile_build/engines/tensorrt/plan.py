"""ONNX to a TensorRT engine: parse, check precision and profile, build, inspect, write with its facts.

Written against the API that TensorRT 10.x and 11.x share; the module itself is an argument, so that the
same code runs with `tensorrt` on a GPU machine and with `tensorrt_rtx`, whose builder needs no GPU, in tests.
"""

import functools
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from voxtile_build.engines.tensorrt.errors import EngineBuildError, TensorRtError
from voxtile_build.engines.tensorrt.facts import PlanFacts, profile_facts, sha256, visible_gpu
from voxtile_build.engines.tensorrt.inspect import check_engine_precision, inspect_engine
from voxtile_build.engines.tensorrt.network import (
    ParsedNetwork,
    Precision,
    check_network_precision,
    input_shapes,
    layers,
    parse_onnx,
)
from voxtile_build.engines.tensorrt.profile import Profile, check_profile

# phase, steps done, steps of the phase; return False to stop the build.
Progress = Callable[[str, int, int], bool]


@dataclass(frozen=True)
class EngineOptions:
    """How to build. The two compatibilities cost speed and widen where a plan runs."""

    workspace_bytes: int | None = None
    optimization_level: int | None = None
    hardware_compatibility: Literal["ampere_plus", "same_compute_capability"] | None = None
    version_compatible: bool = False
    timing_cache: Path | None = None
    kept_higher: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Engine:
    """Serialised engine and the facts that it is valid for."""

    plan: bytes
    facts: PlanFacts


def build_engine(
    trt: ModuleType,
    model: bytes,
    profile: Profile,
    precision: Precision,
    options: EngineOptions = EngineOptions(),
    progress: Progress | None = None,
) -> Engine:
    """Builds an engine from a self-contained ONNX file, already converted to `precision`.

    Raises OnnxParseError, ProfileError, EnginePrecisionError or EngineBuildError, each with the layer's or
    the input's name. Where a GPU is at hand the engine is inspected too; elsewhere the typed network stands.
    """
    logger = error_log(trt)
    logger.errors.clear()
    parsed = parse_onnx(trt, model, logger)
    check_network_precision(parsed.network, precision, options.kept_higher)
    check_profile(profile, input_shapes(parsed.network))
    gpu = visible_gpu()
    config = _configure(trt, parsed, profile, options, gpu is not None)
    # Held here, because the configuration only points to it.
    monitor = progress_monitor(trt, progress) if progress is not None else None
    if monitor is not None:
        config.progress_monitor = monitor
    start = time.monotonic()
    plan = _build(parsed, config, logger)
    seconds = time.monotonic() - start
    if gpu is not None:
        check_engine_precision(inspect_engine(trt, plan, logger), precision)
        _keep_timing_cache(config, options.timing_cache)
    facts = PlanFacts(
        builder=trt.__name__,
        tensorrt_version=trt.__version__,
        gpu_architecture=gpu.architecture if gpu else None,
        gpu_name=gpu.name if gpu else None,
        onnx_sha256=sha256(model),
        plan_sha256=sha256(plan),
        precision=precision,
        profile=profile_facts(profile),
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        kept_higher=sorted(options.kept_higher),
        layers=parsed.network.num_layers,
        build_seconds=round(seconds, 3),
        timing_cache=gpu is not None and options.timing_cache is not None,
    )
    return Engine(plan, facts)


def write_plan(engine: Engine, entry: Path, version: int = 1) -> Path:
    """Writes `ENTRY/VERSION/model.plan` and `ENTRY/plan.json`, each by atomic rename; returns the plan's path.

    Raises TensorRtError for an engine that Triton's `tensorrt` backend could not load.
    """
    if engine.facts.builder != "tensorrt":
        raise TensorRtError(
            f"Engines of {engine.facts.builder} are not TensorRT plans: Triton could not load one. "
            f"Build '{entry.name}' with the module `tensorrt` on a GPU machine."
        )
    if engine.facts.gpu_architecture is None:
        raise TensorRtError(f"The plan of '{entry.name}' has no GPU architecture: build it where a GPU is visible.")
    path = entry / str(version) / "model.plan"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Facts first: a plan without facts could not be checked, facts without a plan harm nobody.
    _write_atomically(entry / "plan.json", engine.facts.to_json().encode())
    _write_atomically(path, engine.plan)
    return path


@functools.cache
def error_log(trt: ModuleType) -> Any:
    """The TensorRT logger of this process, whose `.errors` collects the messages that explain a failed build.

    One for good: TensorRT keeps the first logger that it meets as its global one, by a bare pointer, and crashes
    on the next message if that logger is gone.
    """

    class ErrorLog(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return ErrorLog()


def progress_monitor(trt: ModuleType, progress: Progress) -> Any:
    """TensorRT's progress interface on one function, which may stop the build by returning False."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress(phase_name, step + 1, self.steps[phase_name])

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _configure(trt: ModuleType, parsed: ParsedNetwork, profile: Profile, options: EngineOptions, has_gpu: bool) -> Any:
    config = parsed.builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    _set_compatibility(trt, config, options)
    if has_gpu and options.timing_cache is not None:
        # Asking for a timing cache queries the GPU: without one it is an error, not a miss.
        kept = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(kept), ignore_mismatch=False)
    config.add_optimization_profile(_optimisation_profile(parsed.builder, profile))
    return config


def _set_compatibility(trt: ModuleType, config: Any, options: EngineOptions) -> None:
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatibility is None:
        return
    level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper())
    config.hardware_compatibility_level = level
    if config.hardware_compatibility_level != level:
        raise EngineBuildError(
            f"{trt.__name__} {trt.__version__} does not honour hardware compatibility "
            f"'{options.hardware_compatibility}'. Leave it out, and build one plan per GPU architecture."
        )


def _optimisation_profile(builder: Any, profile: Profile) -> Any:
    shapes = builder.create_optimization_profile()
    for name, sizes in profile.items():
        shapes.set_shape(name, sizes.minimum, sizes.optimum, sizes.maximum)
    return shapes


def _build(parsed: ParsedNetwork, config: Any, logger: Any) -> bytes:
    plan = parsed.builder.build_serialized_network(parsed.network, config)
    if plan is None:
        raise _build_error(parsed.network, logger.errors)
    return bytes(plan)


def _build_error(network: Any, errors: list[str]) -> EngineBuildError:
    message = "\n".join(errors) or "the build was stopped"
    # The builder names layers only inside its messages, and a fused region by its first and last layer, which
    # are not to blame. The longest name wins over its own prefixes.
    blamed = re.sub(r"ForeignNode\[[^\]]*\]", "", message)
    named = [layer.name for layer in layers(network) if layer.name and layer.name in blamed]
    layer = max(named, key=len, default=None)
    where = f" at layer '{layer}'" if layer else ""
    return EngineBuildError(f"TensorRT built no engine{where}: {message}", layer=layer)


def _keep_timing_cache(config: Any, path: Path | None) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(path, bytes(config.get_timing_cache().serialize()))


def _write_atomically(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    # Temporary files are private; what is served must be readable by the server's user.
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
