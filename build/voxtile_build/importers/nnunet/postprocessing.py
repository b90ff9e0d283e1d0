"""Reads the post-processing that nnU-Net determined, as plain steps, without running anything.

nnU-Net writes it twice: as postprocessing.json and as postprocessing.pkl. The unpickler takes numbers and the name of
one function, which is never called.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxtile_build.errors import SourceError
from voxtile_build.importers.nnunet.folder import read_json

KEEP_LARGEST = "remove_all_but_largest_component_from_segmentation"
"""The one function that nnU-Net's determine_postprocessing chooses."""
HOME = "nnunetv2.postprocessing.remove_connected_components"
NUMBERS = {("numpy", "dtype"), ("numpy._core.multiarray", "scalar"), ("numpy.core.multiarray", "scalar")}
ARGUMENTS = {"labels_or_regions", "background_label"}

Step = dict[str, Any]


def read_steps(folder: Path, folds: Sequence[str]) -> list[Step]:
    """The steps that nnU-Net determined for these folds.

    Looks where nnU-Net writes them: in crossval_results_folds_0_1_… of these folds, then in the folder itself.

    Args:
        folder: the trained model.
        folds: such as ("0", "1").

    Returns:
        Steps such as `{"op": "keep_largest", "labels": [1, 2], "background": 0}`; none if nothing was determined.

    Raises:
        SourceError: a file is damaged, or names a function or an argument that is not known.
    """
    for place in (folder / f"crossval_results_folds_{'_'.join(folds)}", folder):
        plain, pickled = place / "postprocessing.json", place / "postprocessing.pkl"
        if plain.is_file():
            return _steps(_from_json(plain), plain)
        if pickled.is_file():
            return _steps(_from_pickle(pickled), pickled)
    return []


def _from_json(path: Path) -> tuple[Any, Any]:
    content = read_json(path)
    return content.get("postprocessing_fns"), content.get("postprocessing_kwargs")


def _from_pickle(path: Path) -> tuple[Any, Any]:
    try:
        with path.open("rb") as stream:
            functions, arguments = _Unpickler(stream, path).load()
    except SourceError:
        raise
    except Exception as error:  # a damaged pickle raises many kinds of errors
        raise SourceError(f"{path}: expected nnU-Net's post-processing, found a damaged pickle: {error}") from None
    return functions, arguments


class _Unpickler(pickle.Unpickler):
    """Gives a function as its name, and makes nothing but containers and NumPy numbers."""

    def __init__(self, stream: Any, path: Path) -> None:
        super().__init__(stream)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if module == HOME and name == KEEP_LARGEST:
            return name
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) in NUMBERS:
            return _number
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise SourceError(
            f"{self.path}: expected nnU-Net's {KEEP_LARGEST}, found a pickle with {module}.{name}, which could run "
            "code; nothing of it was run"
        )


def _number(kind: Any, data: bytes) -> int | float:
    value: int | float = np.frombuffer(data, np.dtype(kind), 1)[0].item()
    return value


def _latin1(text: str, encoding: str) -> bytes:
    """How a pickle of protocol 2 holds bytes."""
    if encoding != "latin1":
        raise ValueError(f"expected bytes as latin1, found {encoding}")
    return text.encode("latin1")


def _steps(found: tuple[Any, Any], path: Path) -> list[Step]:
    functions, arguments = found
    if not _is_list(functions) or not _is_list(arguments) or len(functions) != len(arguments):
        raise SourceError(f"{path}: expected a list of functions and one of their arguments, found something else")
    return [_step(str(name), kwargs, path) for name, kwargs in zip(functions, arguments, strict=True)]


def _step(name: str, arguments: Any, path: Path) -> Step:
    if name != KEEP_LARGEST:
        raise SourceError(f"{path}: expected the function {KEEP_LARGEST}, found {name!r}, which is not known here")
    if not isinstance(arguments, Mapping) or set(arguments) - ARGUMENTS or "labels_or_regions" not in arguments:
        raise SourceError(f"{path}: {name}: expected the arguments {', '.join(sorted(ARGUMENTS))}, found {arguments!r}")
    labels = sorted(set(_flat(arguments["labels_or_regions"], path)))
    return {"op": "keep_largest", "labels": labels, "background": int(arguments.get("background_label", 0))}


def _flat(labels: Any, path: Path) -> list[int]:
    """All labels of nested lists: a region is the union of its labels, and a list of regions is their union."""
    if _is_list(labels):
        return [label for part in labels for label in _flat(part, path)]
    if isinstance(labels, bool) or not isinstance(labels, int):
        raise SourceError(f"{path}: expected labels to be whole numbers, found {labels!r}")
    return [labels]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
