"""Checks the JSON of a program of torch.export.save, and takes out what a network does not need.

PyTorch makes Python code of names in this JSON and runs it, evaluates sizes, and runs `guards_code` as it is. Names
must therefore be plain, sizes arithmetic, operators PyTorch's own. Guards and notes for people are taken out.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voxtile_build.errors import NetworkError
from voxtile_build.importers.files.archive import unsafe

PLAIN = re.compile(r"[\w.+:-]*")
"""What names, versions and devices consist of; no code can be written with it."""
PARAMETER = re.compile(r"[^\W\d]\w*")
SYMBOL = re.compile(r"[su]\d+")
WORDS = frozenset(
    {"Symbol", "Integer", "Rational", "Float", "positive", "nonnegative", "integer", "True", "False", "Add", "Mul"}
    | {"Max", "Min", "Mod", "FloorDiv", "PythonMod", "CeilDiv", "CleanDiv", "ToFloat", "IntTrueDiv", "oo", "int_oo"}
    | {"Pow", "Eq", "Ne", "Ge", "Gt", "Le", "Lt"}
)
"""Words that sizes may consist of; the loader evaluates sizes."""
LONGEST_SIZE, LARGEST_NUMBER, LARGEST_POWER, MOST_POWERS = 10_000, 2**63, 8, 3
"""More than any network needs; without these limits a size such as 9**9**9 would be computed for ever."""
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!from_file|save|_print)\w+(\.\w+)?|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|ge|gt|le|lt|and_|or_|not_)"
)
"""What a network is made of; of PyTorch's own operators, those that read and write files are left out."""
STRUCTURES = ("builtins.tuple", "builtins.list", "builtins.dict", None)
KEYS = {
    "": {"graph_module", "opset_version", "range_constraints", "schema_version", "verifiers", "torch_version"}
    | {"guards_code"},
    "graph_module": {"graph", "signature", "module_call_graph", "metadata", "treespec_namedtuple_fields"},
    "graph": {"inputs", "outputs", "nodes", "tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"}
    | {"custom_obj_values", "is_single_tensor_return"},
    "nodes": {"target", "inputs", "outputs", "metadata", "is_hop_single_tensor_return", "name"},
    "module_call_graph": {"fqn", "signature"},
}
"""The keys that are known, by the key that they stand under; others could mean anything to the loader."""
EMPTIED: dict[str, Any] = {"guards_code": [], "metadata": {}, "treespec_namedtuple_fields": {}}
"""Guards check inputs, which the wrapper's are; the rest is for people and for structures that no network has."""


def clean_json(path: Path, name: str, data: bytes) -> bytes:
    """The JSON of one member, checked and written again, so that PyTorch reads what was checked.

    Args:
        path: of the file, for errors.
        name: of the member.
        data: its bytes.

    Raises:
        NetworkError: it is no JSON, or holds what could run code.
    """
    try:
        content = json.loads(data)
        return json.dumps(_Cleaner(path, name).value("", content)).encode()
    except (ValueError, RecursionError) as error:
        raise NetworkError(f"{path}: {name}: not JSON that a network needs: {error}") from None


class _Cleaner:
    """Walks through one JSON; `key` is always the nearest key above a value."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.program = path, name, name.startswith("models/")

    def value(self, key: str, value: Any) -> Any:
        if self.program and key in EMPTIED:
            return EMPTIED[key]
        if isinstance(value, dict):
            return self.mapping(key, value)
        if isinstance(value, list):
            return [self.value(key, part) for part in value]
        if isinstance(value, str):
            return self.text(key, value)
        if key == "use_pickle" and value:
            raise unsafe(self.path, f"{self.name!r} with pickled tensors")
        return value

    def mapping(self, key: str, value: dict[str, Any]) -> dict[str, Any]:
        known = KEYS.get(key) if self.program else None
        for name in value:
            if known is not None and name not in known:
                raise unsafe(self.path, f"the unknown key {name!r} in {self.name}")
            if not PLAIN.fullmatch(name):
                raise unsafe(self.path, f"the name {name!r}")
        return {name: self.value(name, part) for name, part in value.items()}

    def text(self, key: str, value: str) -> str:
        special: dict[str, Callable[[str], str]] = {
            "in_spec": self.structure,
            "out_spec": self.structure,
            "expr_str": self.size,
            "as_expr": self.size,
            "target": self.operator,
            "as_operator": self.operator,
            "forward_arg_names": self.parameter,
        }
        if key in special:
            return special[key](value)
        # Strings that operators take, such as the equation of einsum, are written into code as strings.
        if not key.startswith("as_string") and not PLAIN.fullmatch(value):
            raise unsafe(self.path, f"the name {value!r} ({key})")
        return value

    def parameter(self, value: str) -> str:
        if not PARAMETER.fullmatch(value):
            raise unsafe(self.path, f"an input of the name {value!r}")
        return value

    def operator(self, value: str) -> str:
        if not OPERATORS.fullmatch(value):
            raise unsafe(self.path, f"the operator {value}; only PyTorch's own can be exported")
        return value

    def size(self, value: str) -> str:
        try:
            parsed = ast.parse(value, mode="eval") if len(value) <= LONGEST_SIZE else None
        except (SyntaxError, ValueError, MemoryError):
            parsed = None
        parts = [] if parsed is None else list(ast.walk(parsed.body))
        if not parts or not all(map(_is_arithmetic, parts)) or sum(map(_is_power, parts)) > MOST_POWERS:
            raise unsafe(self.path, f"the size {value[:200]!r}")
        return value

    def structure(self, value: str) -> str:
        """A tree of tuples, lists and dictionaries, which is JSON inside the JSON."""
        version, tree = json.loads(value)
        return json.dumps([version, self.tree(tree)])

    def tree(self, tree: Any) -> dict[str, Any]:
        if not isinstance(tree, dict) or tree.get("type", "") not in STRUCTURES:
            raise unsafe(self.path, "inputs or outputs in other structures than tuples, lists and dictionaries")
        context = tree.get("context")
        if tree["type"] == "builtins.dict":
            context = json.dumps([self.parameter(str(name)) for name in json.loads(str(context))])
        elif context not in (None, "null"):
            raise unsafe(self.path, f"a structure with {context!r}")
        children = [self.tree(child) for child in tree.get("children_spec", ())]
        return {"type": tree["type"], "context": context, "children_spec": children}


def _is_arithmetic(part: ast.AST) -> bool:
    match part:
        case ast.Name(id=word):
            return word in WORDS or SYMBOL.fullmatch(word) is not None
        case ast.Constant(value=bool()):
            return True
        case ast.Constant(value=str() as text):
            return SYMBOL.fullmatch(text) is not None
        case ast.Constant(value=int() | float() as number):
            return abs(number) <= LARGEST_NUMBER
        case ast.Call(func=ast.Name(id="Pow"), args=[_, power]):
            return _is_small(power)
        case ast.Call(func=ast.Name()) | ast.Compare() | ast.UnaryOp() | ast.keyword():
            return True
        case ast.BinOp(op=ast.Pow(), right=power):
            return _is_small(power)
        case ast.BinOp(op=operation):
            return not isinstance(operation, ast.LShift | ast.MatMult)
    return isinstance(part, ast.expr_context | ast.operator | ast.unaryop | ast.cmpop)


def _is_small(power: ast.expr) -> bool:
    match power:
        case ast.Call(func=ast.Name(id="Integer"), args=[inner]) | ast.UnaryOp(operand=inner):
            return _is_small(inner)
        case ast.Constant(value=int() as number):
            return number <= LARGEST_POWER
    return False


def _is_power(part: ast.AST) -> bool:
    return isinstance(part, ast.Pow) or (isinstance(part, ast.Name) and part.id == "Pow")
