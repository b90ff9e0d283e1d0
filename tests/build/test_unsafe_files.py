"""A crafted file never runs code, touches other files or unfolds without limit: at opening, running or export."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import nn

from tests.support.build_specs import ROI, built_card
from tests.support.network_files import repacked, spec_of, tiny, write_scripted, write_traced
from voxtile.card import parse_card
from voxtile.errors import ModelError
from voxtile_build.errors import (
    BuildError,
    ExportError,
    NetworkError,
    RepositoryError,
    SourceError,
    SpecError,
    VerificationError,
)
from voxtile_build.graph.composing import to_onnx
from voxtile_build.graph.wrapper import wrap
from voxtile_build.importers.files.exported_json import clean_json
from voxtile_build.importers.network import load_network
from voxtile_build.repository import journal

CODE = "__import__('os').mkdir('ran')"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which code of a file would leave the folder `ran`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def use(file: Path, **changes: Any) -> ModelProto:
    """All that the build does with a network in a file: open it, run it, write it as ONNX."""
    spec = spec_of(file, **changes)
    return to_onnx(wrap(load_network(spec), spec), spec)


# torch.export.save


def program(change: Callable[[dict[str, Any]], Any], folder: Path = Path()) -> Path:
    """The small network with its JSON changed."""

    def changed(name: str, data: bytes) -> bytes:
        if "/models/" not in name:
            return data
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return repacked(tiny((folder / "net.pt2").resolve()), changed)


def root_call(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["graph_module"]["module_call_graph"][0]["signature"]
    return found


def renamed(content: dict[str, Any], old: str, new: str) -> None:
    text = json.dumps(content).replace(json.dumps(old), json.dumps(new))
    content.clear()
    content.update(json.loads(text))


def test_guards_which_pytorch_runs_as_code_are_left_out(here: Path) -> None:
    expected = use(tiny(here / "net.pt2"))
    found = use(program(lambda content: content.update(guards_code=[CODE])))
    assert not (here / "ran").exists()
    assert found == expected


def with_kwarg(content: dict[str, Any]) -> None:
    """PyTorch writes the names of keyword arguments into code."""
    tree = json.loads(root_call(content)["in_spec"])
    leaf = {"type": None, "context": None, "children_spec": []}
    tree[1]["children_spec"] = [
        {"type": "builtins.tuple", "context": "null", "children_spec": []},
        {"type": "builtins.dict", "context": json.dumps([f"x={CODE}"]), "children_spec": [leaf]},
    ]
    root_call(content)["in_spec"] = json.dumps(tree)


def of_size(expression: str) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> None:
        renamed(content, "Symbol('s77', positive=True, integer=True)", expression)
        for value in content["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = expression

    return change


def with_tree(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def changed(content: dict[str, Any]) -> None:
        tree = json.loads(root_call(content)["out_spec"])
        change(tree[1])
        root_call(content)["out_spec"] = json.dumps(tree).replace('": ', '" :  ')  # blanks where none are expected

    return changed


def operator(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["graph_module"]["graph"]["nodes"][0].update(target=name)


PROGRAMS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an unknown key": (lambda content: content.update(hooks_code=[CODE]), "the unknown key 'hooks_code'"),
    "an unknown key of the graph": (lambda c: c["graph_module"]["graph"].update(code=CODE), "the unknown key 'code'"),
    "a name of an input": (lambda c: root_call(c).update(forward_arg_names=[f"x={CODE}"]), "an input of the name"),
    "a keyword of an input": (with_kwarg, "an input of the name"),
    "a name of a tensor": (lambda c: renamed(c, "p_model_0_conv_bias", f"p={CODE}"), "the name"),
    "a name of a weight": (lambda c: renamed(c, "model.0.conv.bias", f'x"),{CODE},("'), "the name"),
    "a function of Python": (operator("torch.hub.load"), "the operator torch.hub.load"),
    "a function of another library": (operator("numpy.load"), "the operator numpy.load"),
    "a registered operator": (operator("#builtins:eval"), "the operator #builtins:eval"),
    "an operator that writes a file": (operator("torch.ops.aten.from_file.default"), "the operator .*from_file"),
    "a size that is code": (of_size(CODE), "the size"),
    "a size that is an attribute": (of_size("Symbol.__class__"), "the size"),
    "a size that is a string": (of_size("Symbol('s77 if 1 else 2')"), "the size"),
    "a size without end": (of_size("9**9**9**9"), "the size"),
    "a power without end": (of_size("Pow(Integer(9), Integer(999999999))"), "the size"),
    "a number without end": (of_size("9" * 400), "the size"),
    "powers of powers": (of_size("Pow(" * 8 + "Integer(9)" + ", Integer(8))" * 8), "the size"),
    "a shift without end": (of_size("1 << 999999999999"), "the size"),
    "another structure": (with_tree(lambda tree: tree.update(type="os.system")), ".* in other structures"),
    "a structure with a context": (
        with_tree(lambda tree: tree.update(type="builtins.tuple", context=CODE)),
        "a struct",
    ),
}


@pytest.mark.parametrize(("change", "found"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_that_could_run_code_is_refused(
    here: Path, change: Callable[[dict[str, Any]], Any], found: str
) -> None:
    with pytest.raises(NetworkError, match=rf"net.pt2: expected tensors and operators only, found {found}"):
        load_network(spec_of(program(change)))
    assert list(here.iterdir()) == [here / "net.pt2"]


def test_examples_of_inputs_are_not_unpickled(here: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (CODE,)

    file = repacked(
        tiny(here / "net.pt2"), lambda name, data: pickle.dumps(Runs()) if name.endswith("inputs/model.pt") else data
    )
    use(file)
    assert not (here / "ran").exists()


def test_what_is_checked_is_what_pytorch_reads(here: Path) -> None:
    """Two members of one name: Python's reader takes the last, PyTorch's may take the first."""
    file = program(lambda content: content.update(guards_code=[CODE]))
    with zipfile.ZipFile(file) as archive:
        (name,) = [name for name in archive.namelist() if "/models/" in name]
        content = archive.read(name).replace(CODE.encode(), b"")
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the second member
        archive.writestr(name, content)
    with pytest.raises(NetworkError, match="two members of one name"):
        load_network(spec_of(file))


@pytest.mark.parametrize("text", ["[" * 100_000, "", "{", "nul"])
def test_json_that_nests_without_end_is_no_network(text: str) -> None:
    with pytest.raises(NetworkError, match=r"a.pt2: models/model.json: not JSON"):
        clean_json(Path("a.pt2"), "models/model.json", text.encode())


@pytest.mark.parametrize("name", ["net.pt2", "net.pt", "net.ts"])
def test_an_archive_that_unpacks_to_terabytes_is_not_unpacked(here: Path, name: str) -> None:
    file = here / name
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for member in ("net/constants.pkl", "net/code/a.py", "net/data.pkl", "net/models/model.json"):
            archive.writestr(member, bytes(80 << 20))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(NetworkError, match="found a damaged one: its members unpack to more than a network's could"):
        load_network(spec_of(file))


# TorchScript


class Writes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("ran", True, 4).sum()


class WritesWhenLoaded(nn.Module):
    """TorchScript runs `__setstate__` while the file is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.zeros(4)

    @torch.jit.export
    def __getstate__(self) -> tuple[int, bool]:
        return 0, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]) -> None:
        self.training = state[1]
        self.value = torch.from_file("ran", True, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.value[0]


@pytest.mark.parametrize("network", [Writes(), WritesWhenLoaded()], ids=["when run", "when loaded"])
def test_torchscript_that_writes_files_is_not_loaded(here: Path, network: nn.Module) -> None:
    file = write_scripted(network, here / "net.pt")
    with pytest.raises(NetworkError, match=r"net.pt: expected tensors and operators only, found 'from_file' in code"):
        load_network(spec_of(file))
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("torch.save(x, 'ran')", "'save'"),
        ("x.save('ran')", "'save'"),
        ("torch . \\\n      save(x, 'ran')", "'save'"),
        ("ops.inductor._reinterpret_tensor(x)", "operators of 'inductor'"),
        ("ops.aten.from_file('ran', True, 4)", "'from_file'"),
        ("__torch__.torch.classes.profiling.SourceStats()", "'classes'"),
        ("ops.prim.rpc_async('a', 'b')", "'rpc_async'"),
        ("torch.relu(", "what cannot be read"),
        ("(" * 500 + "x" + ")" * 500, "what cannot be read"),
    ],
)
def test_code_of_torchscript_is_read_before_it_runs(here: Path, line: str, found: str) -> None:
    def changed(name: str, data: bytes) -> bytes:
        return data.replace(b"    return ", f"    _x = {line}\n    return ".encode()) if name.endswith(".py") else data

    file = repacked(write_traced(nn.ReLU(), here / "net.pt"), changed)
    with pytest.raises(NetworkError, match=rf"net.pt: .*found {found}"):
        load_network(spec_of(file))
    assert list(here.iterdir()) == [file]


@pytest.mark.parametrize("member", ["model.json", "bytecode.pkl", "hidden/code.py", "xl_model_weights/0"])
def test_other_forms_inside_an_archive_of_torchscript_are_refused(here: Path, member: str) -> None:
    file = repacked(write_traced(nn.ReLU(), here / "net.pt"), lambda _, data: data, {member: b"{}"})
    with pytest.raises(NetworkError, match=f"found '{member}', which is not part of an exported network"):
        load_network(spec_of(file))


def test_objects_written_in_c_are_refused(here: Path) -> None:
    def changed(name: str, data: bytes) -> bytes:
        return data.replace(b"ReLU", b"torch.classes.quantized.Linear") if name.endswith("data.pkl") else data

    file = repacked(write_traced(nn.ReLU(), here / "net.pt"), changed)
    with pytest.raises(NetworkError, match=r"'data.pkl' with objects that are written in C\+\+"):
        load_network(spec_of(file))


# A batch that is baked in


class BakedIn(nn.Module):
    """As a trace with a batch of 1 leaves it; `fails` says whether other batches fail or are mixed."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails:
            return torch.cat([x.reshape(1, 1, *ROI)] * 3, 1)
        return torch.cat([x + x.mean(0, keepdim=True)] * 3, 1)


@pytest.mark.parametrize(
    ("fails", "expected"),
    [
        (True, "the file takes a batch of 1 and no other, found max_batch_size 2; set serving.max_batch_size = 1"),
        (False, "the network mixes them, .*; set serving.max_batch_size = 1"),
    ],
    ids=["fails", "mixes"],
)
def test_a_trace_with_its_batch_baked_in_is_one_line_and_served_one_by_one(
    here: Path, fails: bool, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_traced(BakedIn(fails), here / "net.pt")
    with pytest.raises(NetworkError, match=f"net.pt: serving.max_batch_size: .*{expected}") as caught:
        use(file)
    assert len(str(caught.value).splitlines()) == 1
    graph = use(file, serving={"max_batch_size": 1})
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert capfd.readouterr() == ("", "")


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(7, -1)


class NotInOnnx(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.special.i1e(x)] * 3, 1)


@pytest.mark.parametrize(
    ("network", "write", "kind"),
    [
        (Fails(), write_scripted, NetworkError),
        (NotInOnnx(), write_scripted, ExportError),
        (NotInOnnx(), write_traced, ExportError),
    ],
    ids=["fails", "scripted", "traced"],
)
def test_what_a_foreign_library_says_is_one_line_and_nothing_is_printed(
    here: Path,
    network: nn.Module,
    write: Callable[[nn.Module, Path], Path],
    kind: type[BuildError],
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = write(network, here / "net.pt")
    with pytest.raises(kind, match=r"the network refuses a ROI|cannot be written as ONNX") as caught:
        use(file)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000
    assert capfd.readouterr() == ("", "")


# ONNX


def onnx_file(change: Callable[[ModelProto], Any]) -> Path:
    file = tiny(Path("net.onnx").resolve())
    model = onnx.load(file)
    change(model)
    file.write_bytes(model.SerializeToString())
    return file


def outside(location: str, name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "4"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def in_a_constant(model: ModelProto, tensor: TensorProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["secret"], value=tensor))


def in_a_branch(model: ModelProto, tensor: TensorProto) -> None:
    result = helper.make_tensor_value_info("w", TensorProto.FLOAT, [1])
    branch = helper.make_graph([], "branch", [], [result], [tensor])
    condition = helper.make_tensor("always", TensorProto.BOOL, [], [True])
    model.graph.initializer.append(condition)
    model.graph.node.insert(0, helper.make_node("If", ["always"], ["s"], then_branch=branch, else_branch=branch))


def in_a_function(model: ModelProto, tensor: TensorProto) -> None:
    node = helper.make_node("Constant", [], ["secret"], value=tensor)
    model.functions.append(
        helper.make_function("own", "Hidden", [], ["secret"], [node], [helper.make_opsetid("", 20)], [])
    )
    model.opset_import.append(helper.make_opsetid("own", 1))


def in_a_sparse_weight(model: ModelProto, tensor: TensorProto) -> None:
    model.graph.sparse_initializer.add(dims=[4]).values.CopyFrom(tensor)


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("/etc/passwd", in_a_constant),
        ("../../etc/passwd", in_a_branch),
        ("link", in_a_function),
        ("net.data", in_a_sparse_weight),
        ("", in_a_constant),
    ],
)
def test_no_tensor_of_an_onnx_file_lies_in_another_file(
    here: Path, location: str, place: Callable[[ModelProto, TensorProto], None]
) -> None:
    (here / "link").symlink_to("/etc/passwd")
    file = onnx_file(lambda model: place(model, outside(location)))
    with pytest.raises(
        NetworkError, match=r"expected one file with the weights inside, .*found [12] tensors in another"
    ):
        load_network(spec_of(file))


def doubling(model: ModelProto, levels: int, first: str = "Relu") -> None:
    """Functions that call the one before twice: 2 ** levels operators in a few lines."""
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    for level in range(levels):
        called = (f"F{level - 1}", "own") if level else (first, "" if first == "Relu" else "own")
        nodes = [helper.make_node(called[0], [a], [b], domain=called[1]) for a, b in (("a", "b"), ("b", "c"))]
        model.functions.append(helper.make_function("own", f"F{level}", ["a"], ["c"], nodes, opset, []))
    model.opset_import.append(helper.make_opsetid("own", 1))
    name = model.graph.input[0].name
    model.graph.node.insert(0, helper.make_node(f"F{levels - 1}", [name], ["unfolded"], domain="own"))


def giant(model: ModelProto) -> None:
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1 << 20, 1 << 20])
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["giant"]))


def hidden_operator(model: ModelProto) -> None:
    """A function makes its domain known, and an operator of the same domain is not a function."""
    doubling(model, 1)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    name = model.graph.input[0].name
    nodes = [helper.make_node("Relu", ["a"], ["b"])]
    opset = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("com.microsoft", "Mine", ["a"], ["b"], nodes, opset, []))
    model.graph.node.insert(0, helper.make_node("Gelu", [name], ["g"], domain="com.microsoft"))


def short_weights(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 40


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda model: doubling(model, 40), "of at most 1,000,000 operators, found functions that unfold to more"),
        (lambda model: doubling(model, 3, first="F2"), "or that call themselves"),
        (giant, r"of at most 8,589,934,592 values, found 'giant' of \[1048576, 1048576\]"),
        (hidden_operator, "of the ONNX standard alone, found com.microsoft.Gelu"),
        (short_weights, "net.onnx: "),
    ],
    ids=["functions that unfold", "functions that call themselves", "a giant", "an operator behind a function", "dims"],
)
def test_an_onnx_file_is_no_bomb(here: Path, change: Callable[[ModelProto], Any], expected: str) -> None:
    with pytest.raises(NetworkError, match=expected):
        load_network(spec_of(onnx_file(change)))


def test_functions_that_unfold_to_little_are_taken(here: Path) -> None:
    use(onnx_file(lambda model: doubling(model, 4)))


# What is read beside networks


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = {" * 50_000, "[" + "a." * 50_000 + "a]\nb = 1", "a = 'x"], ids=range(4)
)
def test_a_spec_that_nests_without_end_is_refused(here: Path, text: str) -> None:
    from voxtile_build.spec.spec import load_spec

    (here / "m.toml").write_text(text)
    with pytest.raises(SpecError, match=r"m\.toml"):
        load_spec(here / "m.toml")


BILLION = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
YAML = {
    "code": "a: !!python/object/apply:os.mkdir [ran]\n",
    "aliases of aliases": BILLION,
    "an alias of itself": "a: &a [*a]\n",
    "nesting": "a: " + "[" * 5_000,
    "a mapping of itself": "a: &a {b: *a}\n",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_of_a_bundle_is_data_and_no_bomb(here: Path, text: str) -> None:
    from voxtile_build.importers.bundle.config import read_config

    (here / "configs").mkdir()
    (here / "configs" / "inference.yaml").write_text(text)
    with pytest.raises(SourceError, match=r"inference\.yaml: cannot be read"):
        read_config(here, "inference")
    assert not (here / "ran").exists()


def test_json_that_nests_without_end_is_refused_everywhere(here: Path) -> None:
    from voxtile_build.importers.bundle.config import read_config
    from voxtile_build.importers.nnunet.folder import read_json

    deep = '{"a": ' + "[" * 200_000
    (here / "configs").mkdir()
    (here / "configs" / "inference.json").write_text(deep)
    (here / "plans.json").write_text(deep)
    with pytest.raises(SourceError, match=r"inference\.json: cannot be read"):
        read_config(here, "inference")
    with pytest.raises(SourceError, match=r"plans\.json: expected JSON"):
        read_json(here / "plans.json")


JUNK = ("[" * 200_000, "1" * 5000, "[]", "{", "\udcff")


@pytest.mark.parametrize("text", JUNK, ids=range(len(JUNK)))
def test_a_card_and_a_config_that_are_junk_are_refused_in_one_line(here: Path, text: str) -> None:
    from voxtile_build.repository.config import read_config as read_entry_config

    with pytest.raises(ModelError, match="model 'm': its card"):
        parse_card(text, "m")
    (here / "config.pbtxt").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RepositoryError, match=r"config\.pbtxt: not a Triton model config"):
        read_entry_config(here)


@pytest.mark.parametrize("plan", [{"label_channels": 5}, {"label_channels": "ab"}, {"previous_stage": ["a"]}])
def test_a_cards_cascade_is_of_the_right_types(plan: dict[str, Any]) -> None:
    fields = {**built_card().model_dump(mode="json"), "nnunet": plan}
    with pytest.raises(ModelError, match="its card does not fit the schema"):
        parse_card(json.dumps(fields), "m")


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "\udcff"], ids=range(3))
def test_a_journal_that_is_junk_is_refused(here: Path, content: str) -> None:
    (here / journal.FILE).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RepositoryError, match="expected the record"):
        journal.read_journal(here, here / "repository")


def npz(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def object_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{}], object), allow_pickle=True)
    return stream.getvalue()


EVIDENCE = {
    "a pickle": npz(settings=object_array()),
    "a shape of terabytes": npz(settings=npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,)}")),
    "a header of code": npz(settings=npy("__import__('os').mkdir('ran')")),
    "zeros without end": npz(settings=npy("{'descr': '|u1', 'fortran_order': False, 'shape': (9,)}", bytes(8 << 20))),
    "settings that nest": npz(
        settings=npy("{'descr': '|u1', 'fortran_order': False, 'shape': (100000,)}", b"[" * 100_000)
    ),
}


@pytest.mark.parametrize("content", EVIDENCE.values(), ids=EVIDENCE)
def test_stored_evidence_is_data_and_no_bomb(here: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from voxtile_build.certificate import archive

    monkeypatch.setattr(archive, "MOST_BYTES", 4 << 20)
    (here / "reference.npz").write_bytes(content)
    with pytest.raises(VerificationError, match=r"reference\.npz: expected the stored reference"):
        archive.unpack(here / "reference.npz")
    assert not (here / "ran").exists()
