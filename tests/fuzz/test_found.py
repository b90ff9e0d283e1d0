"""What fuzzing has found, and its siblings: each input is refused by the reader's own error, in few words."""

from __future__ import annotations

import copy
import io
import json
import pickle
import zipfile
from typing import Any

import pytest
import torch

from tests.fuzz import seeds
from tests.fuzz.documents import text_of
from tests.fuzz.probe import probe
from tests.fuzz.targets import TARGETS

DEEP, LONG_NUMBER = b"[" * 100_000, b'{"schema_version": ' + b"9" * 5000 + b"}"


def nnunet(*path: str, value: Any, part: str = "plans") -> tuple[str, bytes]:
    """A folder with one value of dataset.json or plans.json replaced."""
    document: dict[str, Any] = copy.deepcopy(seeds.NNUNET[1])
    place = document[part]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return "nnunet", text_of(document)


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def checkpoint(**changes: Any) -> bytes:
    arguments = {"configuration": "3d_fullres"}
    return saved({"network_weights": {"a": torch.zeros(2)}, "init_args": arguments, **changes})


def with_pickle(content: bytes) -> bytes:
    """A checkpoint of torch.save with another pickle in it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint())) as old, zipfile.ZipFile(packed, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, content if entry.endswith("data.pkl") else old.read(entry))
    return packed.getvalue()


def bundle(*path: str | int, value: Any, part: str = "inference") -> tuple[str, bytes]:
    """A bundle with one value of its configuration replaced."""
    document: Any = copy.deepcopy(seeds.BUNDLES[0])
    place = document[part]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return "bundle", text_of(document)


STEPS, FORMATS = ("preprocessing", "transforms"), ("network_data_format",)
FULLRES = ("configurations", "3d_fullres")
FOUND = [
    *((name, content) for name in ("card", "spec", "nnunet", "bundle") for content in (DEEP, LONG_NUMBER)),
    ("card", text_of({**seeds.CARDS[0], "intensity": {"rule": ["a" * 200_000]}})),
    ("spec", b"version = " + b"9" * 5000),
    ("spec", text_of({**seeds.SPEC, "serving": {"engines": ["none"] * 3000}})),
    ("bundle", text_of({"metadata": seeds.METADATA, "inference": {**seeds.INFERENCE, "network_def": ["x"] * 20_000}})),
    bundle(*STEPS, 0, "keys", value=None),
    bundle(*STEPS, 0, "keys", value=[["image"]]),
    bundle(*STEPS, 4, "a_min", value=[0]),
    bundle(*STEPS, 4, "a_max", value="true"),
    bundle(*FORMATS, "inputs", "image", value=5, part="metadata"),
    bundle(*FORMATS, "outputs", "pred", "num_channels", value=10**12, part="metadata"),
    nnunet("configurations", value=[]),
    nnunet(*FULLRES, value="3d"),
    nnunet(*FULLRES, value=[[1]]),
    nnunet(*FULLRES, "inherits_from", value=["3d_fullres"]),
    nnunet(*FULLRES, "architecture", value={}),
    nnunet(*FULLRES, "architecture", value="PlainConvUNet"),
    nnunet(*FULLRES, "architecture", "arch_kwargs", value=[1]),
    nnunet(*FULLRES, "patch_size", value=16),
    nnunet(*FULLRES, "patch_size", value=[16, 16, 10**30]),
    nnunet(*FULLRES, "patch_size", value=["16", "16", "16"]),
    nnunet(*FULLRES, "normalization_schemes", value=None),
    nnunet("foreground_intensity_properties_per_channel", value=[1]),
    nnunet("regions_class_order", value=[[1], [2]], part="dataset"),
    nnunet("regions_class_order", value={"1": 2}, part="dataset"),
    nnunet("labels", value=[0, 1], part="dataset"),
    nnunet("channel_names", value=["CT"], part="dataset"),
    ("checkpoint", checkpoint(inference_allowed_mirroring_axes=5)),
    ("checkpoint", checkpoint(inference_allowed_mirroring_axes="012")),
    ("checkpoint", checkpoint(inference_allowed_mirroring_axes=[[0]])),
    ("checkpoint", checkpoint(network_weights={3: torch.zeros(2)})),
    *(
        (name, with_pickle(content))
        for name in ("checkpoint", "weights")
        for content in (b"\x80\x02s.", b"\x80\x02j\x01", b"h\x68.")
    ),
    ("weights", saved({3: torch.zeros(2)})),
    ("weights", pickle.dumps({"a": 1})[:-3]),
]


@pytest.mark.parametrize(("name", "content"), FOUND, ids=lambda value: value if isinstance(value, str) else "")
def test_what_fuzzing_found_is_refused(name: str, content: bytes, tmp_path: Any) -> None:
    probe(TARGETS[name], content)
    with pytest.raises(TARGETS[name].errors()):
        TARGETS[name].read(content, tmp_path)


def test_state_dicts_of_different_types_are_not_the_same_ones(tmp_path: Any) -> None:
    states = {"state_dict": {"a": torch.zeros(2)}, "model": {"a": torch.zeros(2, dtype=torch.int64)}}
    with pytest.raises(TARGETS["weights"].errors(), match="different ones"):
        TARGETS["weights"].read(saved(states), tmp_path)


def test_a_document_is_still_read_when_nothing_is_changed(tmp_path: Any) -> None:
    assert json.loads(text_of(seeds.NNUNET[0])) == seeds.NNUNET[0]
    TARGETS["nnunet"].read(text_of(seeds.NNUNET[1]), tmp_path)
