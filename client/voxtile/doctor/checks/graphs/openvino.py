"""Faults of an OpenVINO IR: a file that is none or is cut off, weights that end too soon, tensors that differ.

An IR is a small XML file, which names inputs, outputs and the places of weights in the file beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from tritonclient.grpc import model_config_pb2 as pb

from voxtile.doctor.checks.graphs.tensors import GraphTensor, check_tensors, check_weights, unreadable
from voxtile.doctor.finding import Finding

TYPES = {
    "FP32": pb.TYPE_FP32, "FP16": pb.TYPE_FP16, "BF16": pb.TYPE_BF16, "FP64": pb.TYPE_FP64, "BOOL": pb.TYPE_BOOL,
    "I8": pb.TYPE_INT8, "I16": pb.TYPE_INT16, "I32": pb.TYPE_INT32, "I64": pb.TYPE_INT64,
    "U8": pb.TYPE_UINT8, "U16": pb.TYPE_UINT16, "U32": pb.TYPE_UINT32, "U64": pb.TYPE_UINT64,
}  # fmt: skip
"""OpenVINO's names of types as Triton's."""


def check_ir(file: Path, weights: Path | None, config: pb.ModelConfig) -> Iterator[Finding]:
    """Faults of an IR.

    Args:
        file: the XML file.
        weights: the file beside it; None where an entry names none.
        config: the configuration of its entry.
    """
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError, UnicodeError, ValueError) as error:
        yield unreadable(file, f"expected an OpenVINO IR, found no XML ({error})")
        return
    layers = root.findall("layers/layer")
    if root.tag != "net" or not layers:
        yield unreadable(file, f"expected an OpenVINO IR (<net …> with layers), found <{root.tag} …>")
        return
    try:
        inputs = [_input(layer) for layer in layers if layer.get("type") == "Parameter"]
        outputs = _outputs(root, layers)
        end = max((_end(one) for one in root.iter("data") if "offset" in one.attrib), default=0)
    except (KeyError, ValueError) as error:
        yield unreadable(file, f"expected an OpenVINO IR, found a layer without its fields ({error})")
        return
    if weights is not None:
        yield from check_weights(file, weights, end)
    yield from check_tensors(file, inputs, outputs, config)


def _input(layer: Element) -> GraphTensor:
    port = layer.find("output/port")
    names = _names(port.get("names")) if port is not None else ()
    return GraphTensor(names or (layer.get("name", ""),), *_type(port))


def _outputs(root: Element, layers: Sequence[Element]) -> list[GraphTensor]:
    """Results; each has the names of the port that it comes from."""
    ports = {
        (layer.get("id"), port.get("id")): _names(port.get("names"))
        for layer in layers
        for port in layer.findall("output/port")
    }
    sources = {edge.get("to-layer"): (edge.get("from-layer"), edge.get("from-port")) for edge in root.iter("edge")}
    found = []
    for layer in layers:
        if layer.get("type") == "Result":
            source = sources.get(layer.get("id"))
            names = (*_names(layer.get("output_names")), *(ports.get(source, ()) if source is not None else ()))
            found.append(GraphTensor(tuple(dict.fromkeys(names)), *_type(layer.find("input/port"))))
    return found


def _names(text: str | None) -> tuple[str, ...]:
    """Names with commas between; one within a name stands behind a backslash."""
    return tuple(name.replace("\0", ",") for name in (text or "").replace("\\,", "\0").split(",") if name)


def _type(port: Element | None) -> tuple[int | None, tuple[int, ...] | None]:
    if port is None:
        return None, None
    precision = port.get("precision")
    dtype = None if precision is None else TYPES.get(precision, int(pb.TYPE_INVALID))
    return dtype, tuple(_extent(dim.text or "") for dim in port.findall("dim"))


def _extent(text: str) -> int:
    """An extent; -1 for one that is free, also within bounds (`1..8`)."""
    return int(text) if text.strip().isdecimal() else -1


def _end(data: Element) -> int:
    return int(data.attrib["offset"]) + int(data.attrib["size"])
