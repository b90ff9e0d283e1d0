"""A trained nnU-Net v2 folder on disk: its JSON files, configurations and folds.

Knows names and JSON, not what the values mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.importers.nnunet.found import SEPARATOR, trained_folders, what_was_found
from voxtile_build.importers.nnunet.old_plans import with_architecture
from voxtile_build.importers.nnunet.shapes import Configuration, Dataset, Inheriting, Plans, check_kinds


@dataclass(frozen=True)
class ModelFolder:
    """A trained model: its folder, and the contents of dataset.json and plans.json."""

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
        """A configuration with what it inherits, in the form of current plans.

        Raises:
            SourceError: the name is not known, configurations inherit in a circle, or old plans cannot be converted.
        """
        return configuration_of(self.plans, name, str(self.plans_file))

    def folds_with(self, checkpoint: str) -> tuple[str, ...]:
        """The folds that have the file `checkpoint`, as nnU-Net finds them: "all" only if there are no others."""
        found = sorted(file.parent.name.removeprefix("fold_") for file in self.path.glob(f"fold_*/{checkpoint}"))
        return tuple(fold for fold in found if fold != "all") or tuple(found)

    def stage(self, configuration: str) -> ModelFolder:
        """The model of another configuration, trained with the same trainer and plans; its folder lies beside this one.

        Raises:
            SourceError: there is no such folder.
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
    """The trained model in a folder.

    Args:
        path: the folder of the model, or a data set's results folder, which holds several models.
        configuration: which model of a results folder.

    Raises:
        SourceError: there is no model, or there are several and no configuration is given.
    """
    chosen = path if (path / "plans.json").is_file() else _choose(path, configuration)
    dataset, plans = read_json(chosen / "dataset.json"), read_json(chosen / "plans.json")
    check_kinds(Dataset, dataset, str(chosen / "dataset.json"))
    check_kinds(Plans, plans, str(chosen / "plans.json"))
    return ModelFolder(chosen, dataset, plans)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        SourceError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); a trained nnU-Net v2 folder holds dataset.json, "
            "plans.json and fold_X/checkpoint_final.pth"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: expected JSON, found {error}") from None
    if not isinstance(content, dict):
        raise SourceError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def configuration_of(plans: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """One configuration of `plans`: inherited keys are merged in, old architecture keys converted."""
    check_kinds(Plans, plans, where)
    merged = with_architecture(_inherited(plans["configurations"], name, where, ()), f"{where}: configurations.{name}")
    check_kinds(Configuration, merged, f"{where}: configurations.{name}")
    return merged


def _inherited(configurations: Mapping[str, Any], name: str, where: str, visited: tuple[str, ...]) -> dict[str, Any]:
    if name not in configurations:
        raise SourceError(f"{where}: expected one of the configurations {', '.join(configurations)}, found {name!r}")
    if name in visited:
        raise SourceError(f"{where}: configurations inherit in a circle: {' from '.join([*visited, name])}")
    own = dict(configurations[name])
    check_kinds(Inheriting, own, f"{where}: configurations.{name}")
    if own.get("inherits_from") is None:
        return own
    return {**_inherited(configurations, own["inherits_from"], where, (*visited, name)), **own}


def _choose(path: Path, configuration: str | None) -> Path:
    models = trained_folders(path)
    wanted = [model for model in models if configuration in (None, model.name.split(SEPARATOR)[-1])]
    if len(wanted) == 1:
        return wanted[0]
    of = f" of configuration {configuration!r}" if configuration else ""
    raise SourceError(
        f"{path}: expected a trained nnU-Net v2 folder (dataset.json, plans.json, fold_X){of}, "
        f"found {what_was_found(path)}"
    )
