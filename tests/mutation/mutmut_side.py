"""What is asked of mutmut's own code; runs as a process in a staged copy, because mutmut reads its settings there.

python -m tests.mutation.mutmut_side functions|left-out|diffs        JSON in, JSON out
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import Mutation, MutationVisitor, mutate_file_contents
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import get_ignored_lines

AT_IMPORT = (cst.Integer, cst.Float, cst.BinaryOperation, cst.Comparison, cst.ComparisonTarget, cst.BooleanOperation)
"""What is changed outside functions: constants. A changed name or string there mostly fails at the import."""


def functions(paths: list[str]) -> dict[str, list[str]]:
    """Returns the names of the mutants that mutmut makes of each file's functions."""
    return {path: list(mutate_file_contents(path, Path(path).read_text()).mutant_names) for path in paths}


def left_out(paths: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Returns, for each file, the mutants that mutmut leaves out: the decorated function, or "", and the whole file."""
    return {path: list(_left_out(path)) for path in paths}


def diffs(mutants: list[tuple[str, str]]) -> dict[str, str]:
    """Returns the diff of each mutant (path, name)."""
    return {name: get_diff_for_mutant(name, path=path) for path, name in mutants}


class _Everywhere(MutationVisitor):
    """Visits decorated functions too."""

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        decorated = isinstance(node, cst.FunctionDef) and bool(node.decorators)
        return False if decorated else super()._skip_node_and_children(node)


def _left_out(path: str) -> Iterator[tuple[str, str]]:
    code = Path(path).read_text()
    wrapper = MetadataWrapper(cst.parse_module(code))
    visitor = _Everywhere([*mutation_operators, (cst.Float, _ten_times)], get_ignored_lines(path, code, wrapper))
    module = wrapper.visit(visitor)
    for mutation in visitor.mutations:
        function = mutation.contained_by_top_level_function
        if isinstance(function, cst.FunctionDef):
            if not function.decorators or _plain_method(function):
                continue
        elif not isinstance(mutation.original_node, AT_IMPORT):
            continue
        where = function.name.value if isinstance(function, cst.FunctionDef) else ""
        yield where, _applied(module, mutation)


def _ten_times(node: cst.Float) -> Iterator[cst.Float]:
    """A limit of 1e-3 that becomes 1.001 is easily noticed; one that becomes 1e-2 has to be."""
    yield node.with_changes(value=repr(node.evaluated_value * 10))


def _plain_method(function: cst.FunctionDef) -> bool:
    """Whether mutmut itself takes this decorated function."""
    [first, *others] = (decorator.decorator for decorator in function.decorators)
    return not others and isinstance(first, cst.Name) and first.value in ("staticmethod", "classmethod")


def _applied(module: cst.Module, mutation: Mutation) -> str:
    changed = module.deep_replace(mutation.original_node, mutation.mutated_node)
    if not isinstance(changed, cst.Module):
        raise TypeError(f"expected a module, got {type(changed).__name__}")
    return changed.code


if __name__ == "__main__":
    asked: Any = json.load(sys.stdin)
    print(json.dumps({"functions": functions, "left-out": left_out, "diffs": diffs}[sys.argv[1]](asked)))
