"""Weights fit or are refused by name; nothing but tensors is ever unpickled."""

from __future__ import annotations

import argparse
import hashlib
import io
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.support.build_specs import tiny_unet
from voxtile_build.errors import WeightsError
from voxtile_build.networks.weights import load_weights, read_state

State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    return dict(tiny_unet(seed=1).state_dict())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def load(path: Path) -> torch.nn.Module:
    network = tiny_unet(seed=2)
    load_weights(network, path, digest(path))
    return network


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_weights_survive_the_file(tmp_path: Path, state: State, name: str) -> None:
    found = load(save(tmp_path / name, state)).state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("container", ["state_dict", "network_weights", "model"])
def test_a_state_dict_within_a_checkpoint_is_found(tmp_path: Path, state: State, container: str) -> None:
    path = save(tmp_path / "w.pt", {"epoch": 3, container: OrderedDict(state)})
    assert torch.equal(read_state(path)["model.0.conv.weight"], state["model.0.conv.weight"])


def test_the_prefix_of_data_parallel_is_taken_off(tmp_path: Path, state: State) -> None:
    path = save(tmp_path / "w.pt", {f"module.{key}": value for key, value in state.items()})
    assert set(read_state(path)) == set(state)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_model.", "model.", "net.module.", "a.b.c."]
)
def test_the_prefix_of_whatever_held_the_network_is_taken_off(tmp_path: Path, state: State, prefix: str) -> None:
    for name in ("w.pt", "w.safetensors"):
        found = load(save(tmp_path / name, {f"{prefix}{key}": value for key, value in state.items()})).state_dict()
        assert all(torch.equal(found[key], value) for key, value in state.items())


def test_a_prefix_is_taken_off_only_where_just_the_network_remains(tmp_path: Path, state: State) -> None:
    """Two networks in one file, such as a teacher beside its student: which is meant cannot be known."""
    twice = {f"{prefix}.{key}": value for prefix in ("model", "ema") for key, value in state.items()}
    with pytest.raises(WeightsError, match=r"missing: model\.0\.conv\.weight.*unexpected: .*model\.model\.0"):
        load(save(tmp_path / "w.pt", twice))
    beside = {**{f"_model.{key}": value for key, value in state.items()}, "_model.loss.weight": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"unexpected: _model\.model\.0"):
        load(save(tmp_path / "w.pt", beside))


def test_what_training_leaves_beside_the_weights_is_read(tmp_path: Path, state: State) -> None:
    numbers = {"best_acc": np.float64(0.91), "epoch": np.int64(3), "log": np.arange(3.0), "last": np.float32(1)}
    settings = {"hparams": argparse.Namespace(lr=1e-3, data=pathlib.PurePosixPath("/data")), "optimizer": {"state": {}}}
    path = save(tmp_path / "w.ckpt", {"state_dict": state, **numbers, **settings})
    assert torch.equal(load(path).state_dict()["model.0.conv.weight"], state["model.0.conv.weight"])


def test_half_precision_is_cast_to_the_networks_type(tmp_path: Path, state: State) -> None:
    halves = {key: value.half() for key, value in state.items()}
    found = load(save(tmp_path / "w.safetensors", halves)).state_dict()
    assert found["model.0.conv.weight"].dtype == torch.float32
    assert torch.equal(found["model.0.conv.weight"], halves["model.0.conv.weight"].float())


def test_another_checksum_is_refused(tmp_path: Path, state: State) -> None:
    path = save(tmp_path / "w.safetensors", state)
    with pytest.raises(WeightsError, match=f"expected sha256 {'0' * 64}, found {digest(path)}"):
        load_weights(tiny_unet(), path, "0" * 64)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none.pt: cannot be read \(No such file"):
        load_weights(tiny_unet(), tmp_path / "none.pt", "0" * 64)


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, state: State, legacy: bool) -> None:
    path, trace = tmp_path / "w.pt", tmp_path / "was-run"
    if legacy:
        path.write_bytes(pickle.dumps({**state, "extra": Trap(trace)}))
    else:
        torch.save({**state, "extra": Trap(trace)}, path)
    with pytest.raises(WeightsError, match="expected tensors only, found a pickle with other Python objects"):
        load(path)
    assert not trace.exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", tiny_unet())
    with pytest.raises(WeightsError, match=r"monai\.networks\.nets\.unet\.UNet.*Save the state dict alone"):
        load(path)


def pickled(*opcodes: bytes) -> bytes:
    """A state dict whose pickle is made of these opcodes, in a file of torch.save."""
    stream = io.BytesIO()
    torch.save({}, stream)
    with zipfile.ZipFile(stream) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for member, data in {**members, name: b"\x80\x02" + b"".join(opcodes) + b"."}.items():
            archive.writestr(member, data)
    return made.getvalue()


HUGE = b"\x8a\x06" + (1 << 44).to_bytes(6, "little")  # the number 2**44
BOMBS = {
    "a byte array of 16 TB": pickled(b"cbuiltins\nbytearray\n", HUGE, b"\x85R"),
    "an array of 16 TB": pickled(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n", HUGE, b"\x85C\x01b\x87R"),
    "nothing on the stack": pickled(b"0"),
    "lists in lists": pickled(b"]" * 100_000, b"a" * 99_999),
    "an unknown opcode": pickled(b"\xff"),
    "a name that is cut off": pickled(b"ctorch"),
    "a function of the system": pickled(b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R"),
    "an attribute of a module": pickled(b"ctorch.serialization\nos.system\nX\x04\x00\x00\x00true\x85R"),
    "an object of any kind": pickled(b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R"),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_crafted_pickle_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pt: expected") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_unpacks_to_more_than_it_holds_is_not_unpacked(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pt", {"model.0.conv.weight": torch.zeros(1 << 22)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(WeightsError, match="unpacks to more than it holds"):
        load(path)


@pytest.mark.parametrize(
    "header",
    [b"{" * 50_000, b'{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}}', b"[]"],
)
def test_a_crafted_safetensors_file_is_one_clear_error(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(WeightsError, match=r"w\.safetensors: not a whole safetensors file"):
        load(path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_truncated_file_is_refused(tmp_path: Path, state: State, name: str) -> None:
    path = save(tmp_path / name, state)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match=name):
        load(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(WeightsError, match="expected a state dict"):
        load(save(tmp_path / "w.pt", content))


def test_keys_that_do_not_fit_are_named_the_first_few(tmp_path: Path, state: State) -> None:
    missing = list(state)[:5]
    for key in missing:
        del state[key]
    state["head.bias"] = torch.zeros(2)
    last = next(iter(state))
    state[last] = torch.zeros(7)
    with pytest.raises(WeightsError) as caught:
        load(save(tmp_path / "w.safetensors", state))
    message = str(caught.value)
    assert f"5 missing: {', '.join(missing[:3])}, …" in message
    assert "1 unexpected: head.bias" in message
    assert f"{last} (expected [" in message
    assert "found [7])" in message


def test_a_type_that_would_lose_its_fractions_is_refused(tmp_path: Path) -> None:
    network = torch.nn.BatchNorm1d(2)
    state = {key: value.float() for key, value in network.state_dict().items()}
    path = save(tmp_path / "w.safetensors", state)
    with pytest.raises(WeightsError, match=r"num_batches_tracked \(expected torch.int64, found torch.float32\)"):
        load_weights(network, path, digest(path))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, state: State) -> None:
    key = next(iter(state))
    state[key].view(-1)[0] = float("nan")
    with pytest.raises(WeightsError, match=f"found NaN or infinity in {key}"):
        load(save(tmp_path / "w.safetensors", state))
