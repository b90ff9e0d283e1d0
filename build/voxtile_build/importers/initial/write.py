"""From any source to the draft of its spec."""

from __future__ import annotations

from pathlib import Path

from voxtile_build.importers.bundle.bundle import spec_of
from voxtile_build.importers.initial import from_file, from_weights
from voxtile_build.importers.initial.draft import Draft
from voxtile_build.importers.initial.source import Kind, find_source
from voxtile_build.spec.name import nearest_name
from voxtile_build.spec.spec_to_toml import check_new, write_spec


def write_initial_spec(source: Path, file: Path) -> Draft:
    """Write the spec of `source` to the new file `file`.

    Args:
        source: weights, a network in a file, a MONAI bundle, or a folder with one file of weights.
        file: of the spec; its stem becomes the public name, with what a name may not hold replaced.

    Returns:
        What was written.

    Raises:
        BuildError: nothing can be written of the source, or not to this file; nothing is written then.
    """
    check_new(file)
    kind, path = find_source(source)
    name, folder = nearest_name(file.stem), file.resolve().parent
    draft = _drafted(kind, path, name, folder)
    write_spec(draft.spec, file, draft.remarks)
    return draft


def _drafted(kind: Kind, path: Path, name: str, folder: Path) -> Draft:
    if kind is Kind.BUNDLE:
        return Draft(spec_of(path, name), f"{path}: a MONAI bundle", None)
    draft = from_file.draft if kind is Kind.NETWORK else from_weights.draft
    return draft(path, name, folder)
