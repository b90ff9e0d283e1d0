"""Says which kinds of values dataset.json and plans.json hold, and refuses others by the key's name.

Only what the importer reads is named; every other key is left alone. Knows not what the values mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from voxtile_build.errors import SourceError
from voxtile_build.spec.table import MOST_INT

Size = Annotated[StrictInt, Field(gt=0, le=MOST_INT)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class Dataset(_Part):
    """dataset.json."""

    channel_names: dict[str, Any] | None = None
    modality: dict[str, Any] | None = None
    labels: dict[str, Any] | None = None


class Plans(_Part):
    """plans.json; its configurations may inherit keys, so each is looked at once it is complete."""

    image_reader_writer: StrictStr = ""
    configurations: dict[str, dict[str, Any]]
    foreground_intensity_properties_per_channel: dict[str, dict[str, Any]] = {}
    foreground_intensity_properties_by_modality: dict[str, dict[str, Any]] = {}


class Inheriting(_Part):
    """A configuration before what it inherits is merged in."""

    inherits_from: StrictStr | None = None


class Architecture(_Part):
    """The network of a configuration."""

    network_class_name: StrictStr
    arch_kwargs: dict[str, Any] | None = None
    requires_import: list[StrictStr] | None = Field(default=None, alias="_kw_requires_import")


class Configuration(_Part):
    """A configuration with all that it inherits, in the form of current plans."""

    patch_size: Annotated[list[Size], Field(min_length=2, max_length=3)]
    normalization_schemes: list[StrictStr]
    previous_stage: StrictStr | None = None
    architecture: Architecture


class OldConfiguration(_Part):
    """What the architecture is made from where plans are older than it."""

    patch_size: Annotated[list[Size], Field(min_length=2, max_length=3)]
    UNet_class_name: StrictStr
    UNet_base_num_features: Size
    unet_max_num_features: Size
    n_conv_per_stage_encoder: Annotated[list[Size], Field(max_length=32)]


def check_kinds(kinds: type[BaseModel], content: Mapping[str, Any], where: str) -> None:
    """Refuses content with a value of another kind.

    Args:
        kinds: what is expected.
        content: what a file holds.
        where: names the file, and the key in it, for errors.

    Raises:
        SourceError: names the key, what was expected and what was found.
    """
    try:
        kinds.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        expected = first["msg"].removeprefix("Input should be ").removeprefix("Field ")
        found = "" if first["type"] == "missing" else f", found {str(first['input'])[:80]!r}"
        raise SourceError(f"{where}: {key}: expected nnU-Net's kind of value, {expected}{found}") from None
