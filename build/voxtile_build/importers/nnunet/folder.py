"""A trained nnU-Net v2 folder as it lies on disk: its JSON files, its configurations, its folds.

Knows names and JSON; what the values mean is read elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.nnunet.old_plans import with_architecture

SEPARATOR = "__"
"""nnU-Net names a trained model TRAINER__PLANS__CONFIGURATION."""


@dataclass(frozen=True)
class ModelFolder:
    """dataset, plans: the contents of dataset.json and plans.json."""

    path: Path
    dataset: Mapping[str, Any]
    plans: Mapping[str, Any]

    @property
    def dataset_file(self) -> Path:
        return self.path / "dataset.json"

    @property
    def plans_file(self) -> Path:
        return self.path / "plans.json"

    def configuration(self, name: str) -> dict[str, Any]:
        """The configuration `name` with what it inherits, in today's form.

        Raises SourceError for an unknown name, a circle, and old plans that cannot be brought up to date.
        """
        return configuration_of(self.plans, name, str(self.plans_file))

    def folds_with(self, checkpoint: str) -> tuple[str, ...]:
        """The folds that hold the file `checkpoint`, as nnU-Net finds them: fold_all only where it is alone."""
        found = sorted(file.parent.name.removeprefix("fold_") for file in self.path.glob(f"fold_*/{checkpoint}"))
        return tuple(fold for fold in found if fold != "all") or tuple(found)

    def stage(self, configuration: str) -> ModelFolder:
        """The folder of another configuration, trained with the same trainer and plans, beside this one.

        Raises SourceError where there is none.
        """
        parts = self.path.name.split(SEPARATOR)
        place = self.path.with_name(SEPARATOR.join([*parts[:-1], configuration]))
        if len(parts) < 2 or not place.is_dir():
            raise SourceError(
                f"{self.path}: the cascade's first stage is {configuration!r}; expected its trained model in "
                f"{place}, found no such folder; put both stages beside each other, as nnU-Net does"
            )
        return open_folder(place)


def open_folder(path: Path, configuration: str | None = None) -> ModelFolder:
    """The trained model in `path`, or the one of `configuration` in the results folder of a data set.

    Raises SourceError where there is none, or several and no `configuration` to choose by.
    """
    chosen = path if (path / "plans.json").is_file() else _choose(path, configuration)
    return ModelFolder(chosen, read_json(chosen / "dataset.json"), read_json(chosen / "plans.json"))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises SourceError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); a trained nnU-Net v2 folder holds dataset.json, "
            "plans.json and fold_X/checkpoint_final.pth"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: expected JSON, found {error}") from None
    if not isinstance(content, dict):
        raise SourceError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def configuration_of(plans: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """One configuration of `plans`, inherited keys merged in and old architecture keys brought up to date."""
    merged = _inherited(plans.get("configurations", {}), name, where, ())
    return with_architecture(merged, f"{where}: configurations.{name}")


def _inherited(configurations: Mapping[str, Any], name: str, where: str, visited: tuple[str, ...]) -> dict[str, Any]:
    if name not in configurations:
        raise SourceError(f"{where}: expected one of the configurations {', '.join(configurations)}, found {name!r}")
    if name in visited:
        raise SourceError(f"{where}: configurations inherit in a circle: {' from '.join([*visited, name])}")
    own = dict(configurations[name])
    if "inherits_from" not in own:
        return own
    return {**_inherited(configurations, own["inherits_from"], where, (*visited, name)), **own}


def _choose(path: Path, configuration: str | None) -> Path:
    models = sorted(file.parent for file in path.glob(f"*{SEPARATOR}*/plans.json"))
    wanted = [model for model in models if configuration in (None, model.name.split(SEPARATOR)[-1])]
    if len(wanted) == 1:
        return wanted[0]
    what = "a trained nnU-Net v2 folder (dataset.json, plans.json, fold_X)"
    raise SourceError(
        f"{path}: expected {what}{f' of configuration {configuration!r}' if configuration else ''}, found "
        f"{_listed(wanted or models)}; give the folder TRAINER__PLANS__CONFIGURATION of one of them"
    )


def _listed(models: Sequence[Path]) -> str:
    return ", ".join(model.name for model in models) or "none"
