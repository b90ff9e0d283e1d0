"""Files beside those of an engine that a configuration names: labels, data to warm up with, an environment.

Reads none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from voxtile.doctor.entry import Entry, is_there
from voxtile.doctor.finding import Finding

ENVIRONMENT, HERE = "EXECUTION_ENV_PATH", "$$TRITON_MODEL_DIRECTORY"
"""The parameter of a Python model that names another environment, and what stands there for the model's folder."""


def check_named_files(entry: Entry) -> Iterator[Finding]:
    """Files that a configuration names and that are not there."""
    for what, file in _named(entry):
        if not is_there(file) and not file.is_symlink():  # `layout` speaks of a broken link
            yield Finding(
                "error",
                "file-missing",
                str(file),
                f"missing; {what} in {entry.config_file.name} names it",
                "Triton opens it when it loads the model, and does not load it then",
                f"bring it back, or take {what} out",
            )


def _named(entry: Entry) -> Iterator[tuple[str, Path]]:
    if entry.config is None:
        return
    for tensor in entry.config.output:
        if tensor.label_filename:
            yield "label_filename", entry.folder / tensor.label_filename
    for sample in entry.config.model_warmup:
        for given in sample.inputs.values():
            if given.input_data_file:
                yield "input_data_file", entry.folder / "warmup" / given.input_data_file
    environment = entry.config.parameters[ENVIRONMENT].string_value if ENVIRONMENT in entry.config.parameters else ""
    if environment.startswith(HERE):  # what lies elsewhere lies on the machine that serves
        yield ENVIRONMENT, Path(environment.replace(HERE, str(entry.folder), 1))
