"""An OpenVINO model from an entry's config, compiled for each size that comes.

It knows nothing of Triton's Python interface.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openvino as ov

from ..batching import Array, one_by_one
from ..contract import ConfigError, Contract, InGraph
from ..entry import Entry, Loaded, count, one_of, threads
from .pages import forget_pages, return_freed

Shapes = tuple[tuple[int, ...], ...]

OPENVINO_TO_TRITON = {
    "boolean": "TYPE_BOOL",
    "u8": "TYPE_UINT8",
    "u16": "TYPE_UINT16",
    "u32": "TYPE_UINT32",
    "u64": "TYPE_UINT64",
    "i8": "TYPE_INT8",
    "i16": "TYPE_INT16",
    "i32": "TYPE_INT32",
    "i64": "TYPE_INT64",
    "f16": "TYPE_FP16",
    "f32": "TYPE_FP32",
    "f64": "TYPE_FP64",
}
PRECISIONS = {word: word for word in ("f32", "bf16", "f16")}
PERFORMANCE_HINTS = {word: word for word in ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")}
# A graph compiled for one shape was 1.25× as fast as one with free sizes, but each holds its own copy of the weights.
STATIC_VARIANTS = 4


@functools.cache
def the_core() -> Any:
    """OpenVINO's core, one for the process.

    One, because of a fault of OpenVINO 2026.4: a core that ends before a later one leaves the thread that compiled with
    a stack for signals that is gone, and the next signal is a segmentation fault.
    """
    return ov.Core()


def load(entry: Entry, contract: Contract) -> Loaded:
    """Read the model and compile what a batch of one needs.

    Raises:
        ConfigError: the model file is missing, or the config asks for what cannot be.
    """
    if entry.on_gpu:
        raise ConfigError("instance_group says KIND_GPU; the openvino backend takes KIND_CPU and KIND_AUTO only")
    core = the_core()
    if "CPU_EXTENSION_PATH" in entry.parameters:
        core.add_extension(entry.parameters["CPU_EXTENSION_PATH"])
    file = entry.model_file("model.xml")
    variants = Variants(core, core.read_model(file), entry.parameters, file.with_suffix(".bin"))
    variants.prepare(contract)
    run = one_by_one(variants.run) if contract.batched else variants.run
    return Loaded(run, _in_graph(variants.model.inputs), _in_graph(variants.model.outputs))


class Variants:
    """One graph, compiled once for each set of input shapes, and once with free shapes when there are too many sets.

    Args:
        core: OpenVINO's core.
        model: the graph.
        parameters: `parameters` of config.pbtxt.
        weights: the file that `model` maps. The first run of a variant repacks the last of its weights; then the file's
            pages, which take as much memory as the weights, go back to the system, and so does what compiling freed.
    """

    def __init__(self, core: Any, model: Any, parameters: Mapping[str, str], weights: Path | None = None) -> None:
        self._core, self.model, self._weights = core, model, weights
        self._ran: set[int] = set()
        self._device = parameters.get("TARGET_DEVICE", "CPU").upper()
        self._properties = properties(parameters)
        self._limit = count(parameters, "STATIC_VARIANTS", STATIC_VARIANTS)
        self._requests: dict[Shapes | None, Any] = {}

    @property
    def compiled(self) -> list[Shapes | None]:
        """The input shapes of each compiled variant; None is the variant with free shapes."""
        return list(self._requests)

    def prepare(self, contract: Contract) -> None:
        """Compile at loading what a batch of one needs, so that the first request does not wait for it."""
        names = [tensor.name for tensor in contract.inputs]
        shapes = tuple(((1,) if contract.batched else ()) + tensor.dims for tensor in contract.inputs)
        if self._takes(names, shapes):  # otherwise the check of the contract gives a better message than OpenVINO
            self._request(names, None if any(-1 in shape for shape in shapes) else shapes)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Mapping[str, Array]:
        """Infer. The outputs are views of memory that the next run of the same shapes overwrites."""
        names = list(inputs)
        request = self._request(names, tuple(inputs[name].shape for name in names))
        results = request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        if self._weights is not None and id(request) not in self._ran:
            self._ran.add(id(request))  # requests live as long as this object, so that no id comes again
            forget_pages(self._weights)
            return_freed()
        return {name: results[name] for name in outputs}

    def _takes(self, names: Sequence[str], shapes: Shapes) -> bool:
        in_graph = {tensor.any_name: tensor.partial_shape for tensor in self.model.inputs}
        return set(names) == set(in_graph) and all(
            in_graph[name].compatible(ov.PartialShape(list(shape))) for name, shape in zip(names, shapes, strict=True)
        )

    def _request(self, names: Sequence[str], shapes: Shapes | None) -> Any:
        if shapes not in self._requests:
            static = sum(key is not None for key in self._requests)
            if shapes is not None and static >= self._limit:
                return self._request(names, None)
            self._requests[shapes] = self._compile(names, shapes).create_infer_request()
        return self._requests[shapes]

    def _compile(self, names: Sequence[str], shapes: Shapes | None) -> Any:
        model = self.model
        if shapes is not None and model.is_dynamic():
            model = model.clone()  # the constants stay shared
            model.reshape({name: list(shape) for name, shape in zip(names, shapes, strict=True)})
        return self._core.compile_model(model, self._device, self._properties)


def properties(parameters: Mapping[str, str]) -> dict[str, Any]:
    """OpenVINO's properties from the config's parameters.

    Raises:
        ConfigError: a value that OpenVINO's C++ backend would refuse, or two precisions at once.
    """
    hint = parameters.get("PERFORMANCE_HINT", "LATENCY").upper()
    chosen: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _precision(parameters),
        "PERFORMANCE_HINT": one_of(PERFORMANCE_HINTS, hint, "parameter PERFORMANCE_HINT"),
    }
    numbers = {
        "INFERENCE_NUM_THREADS": threads(parameters, "INFERENCE_NUM_THREADS"),
        "COMPILATION_NUM_THREADS": count(parameters, "COMPILATION_NUM_THREADS", 0),
    }
    chosen |= {key: number for key, number in numbers.items() if number}
    if "NUM_STREAMS" in parameters:
        chosen["NUM_STREAMS"] = _streams(parameters)
    return chosen


def _precision(parameters: Mapping[str, str]) -> str:
    """OpenVINO's word for the precision.

    `HINT_BF16=YES` is the C++ backend's word; that backend ignores `INFERENCE_PRECISION_HINT`.
    """
    hint = parameters.get("HINT_BF16")
    if hint is not None and hint.upper() != "YES":
        raise ConfigError(f"parameter HINT_BF16: expected YES, got {hint!r}; leave it out for float32")
    word = parameters.get("INFERENCE_PRECISION_HINT", "bf16" if hint else "f32").lower()
    precision = one_of(PRECISIONS, word, "parameter INFERENCE_PRECISION_HINT")
    if hint and precision != "bf16":
        raise ConfigError(f"HINT_BF16=YES and INFERENCE_PRECISION_HINT={precision} contradict; keep one")
    return precision


def _streams(parameters: Mapping[str, str]) -> str | int:
    word = parameters["NUM_STREAMS"].upper()
    return word if word in ("AUTO", "NUMA") else count(parameters, "NUM_STREAMS", 0)


def _in_graph(tensors: Sequence[Any]) -> list[InGraph]:
    return [InGraph(tensor.any_name, _type_name(tensor), _dims(tensor.partial_shape)) for tensor in tensors]


def _type_name(tensor: Any) -> str:
    name = str(tensor.element_type.get_type_name())
    return OPENVINO_TO_TRITON.get(name, name)


def _dims(shape: Any) -> tuple[int, ...] | None:
    if shape.rank.is_dynamic:
        return None
    return tuple(-1 if size.is_dynamic else size.get_length() for size in shape)
