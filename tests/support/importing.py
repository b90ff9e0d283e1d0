"""Imports trained models and builds them, as the commands nnunet and bundle do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtile_build.build import Published, build_models
from voxtile_build.importers.bundle.bundle import model_of
from voxtile_build.importers.nnunet.models import models_of


def import_nnunet(
    folder: Path, name: str, repository: Path, *, engines: Sequence[str] | None = None, **options: Any
) -> tuple[Published, ...]:
    """The models of a trained nnU-Net folder, built into `repository`; options are those of `models_of`."""
    return build_models(models_of(folder, name, **options), repository, engines=engines)


def import_bundle(
    folder: Path,
    name: str,
    repository: Path,
    settings: Mapping[str, Any] | None = None,
    values: Sequence[str] = (),
) -> tuple[Published, ...]:
    """The model of a MONAI bundle, built into `repository`."""
    return build_models([model_of(folder, name, settings, values)], repository)
