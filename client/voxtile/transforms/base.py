"""What all transforms share: their base class, and types of values. Knows no transform."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

MOST_VOXELS = 32_767
"""Voxels along an axis at most: MONAI keeps the corners of a crop in 16 bits."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100)]
Voxels = Annotated[int, Field(ge=0, le=MOST_VOXELS)]
PositiveVoxels = Annotated[int, Field(gt=0, le=MOST_VOXELS)]
Size = Annotated[int, Field(ge=-1, le=MOST_VOXELS)]
"""Voxels along an axis; 0 or -1 keeps the axis as it is."""
AxisCodes = Annotated[
    str, Field(pattern="^[RL][AP][SI]$|^[RL][SI][AP]$|^[AP][RL][SI]$|^[AP][SI][RL]$|^[SI][RL][AP]$|^[SI][AP][RL]$")
]
"""Axis codes as nibabel names them: one of R/L, one of A/P and one of S/I, in any order."""


class Strict(BaseModel):
    """What people write. Values are not converted: "4" is refused as a number, and 1 as a truth value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _arrays_are_tuples(cls, data: Any) -> Any:
        """TOML and JSON have one kind of array, which strict validation would not take for a tuple."""
        if not isinstance(data, dict):
            return data
        return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


class Transform(Strict):
    """A transform."""


def _one_or_each(value: Any) -> str:
    return "each" if isinstance(value, (list, tuple)) else "one"


OneOrEach = Discriminator(_one_or_each)
"""Either one number, or several: one for each axis or channel."""

PerAxisSize = Annotated[Annotated[Size, Tag("one")] | Annotated[tuple[Size, Size, Size], Tag("each")], OneOrEach]
PerAxisVoxels = Annotated[
    Annotated[Voxels, Tag("one")] | Annotated[tuple[Voxels, Voxels, Voxels], Tag("each")], OneOrEach
]
PerAxisPositive = Annotated[
    Annotated[PositiveFloat, Tag("one")] | Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Tag("each")],
    OneOrEach,
]
PerChannel = Annotated[
    Annotated[Finite, Tag("one")] | Annotated[Annotated[tuple[Finite, ...], Field(min_length=1)], Tag("each")],
    OneOrEach,
]
PerChannelPositive = Annotated[
    Annotated[PositiveFloat, Tag("one")]
    | Annotated[Annotated[tuple[PositiveFloat, ...], Field(min_length=1)], Tag("each")],
    OneOrEach,
]
Numbers = Annotated[
    Annotated[Annotated[int, Field(ge=0)], Tag("one")]
    | Annotated[Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)], Tag("each")],
    OneOrEach,
]
"""Numbers of labels or channels: one, or several."""

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "!=": operator.ne,
}
_RULE = re.compile(r"\s*x\s*(>=|<=|!=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


class Selection(NamedTuple):
    """A rule such as `x > 0`: which values are selected."""

    comparison: str
    number: float

    def __call__(self, values: Any) -> Any:
        """Returns for each of `values`, of an array of any library, whether it is selected; compared in float32."""
        return COMPARISONS[self.comparison](values, self.number)


def selection(rule: str) -> Selection:
    """Returns what a rule such as `x > 0` means.

    Raises:
        ValueError: it is not such a rule.
    """
    found = _RULE.fullmatch(rule)
    if found is None:
        raise ValueError(
            f"expected a rule such as 'x > 0' (with {', '.join(COMPARISONS)} and a number), found {rule!r}; Python is "
            "not run"
        )
    return Selection(found[1], float(found[2]))


def _checked(rule: str) -> str:
    selection(rule)
    return rule


Rule = Annotated[str, AfterValidator(_checked)]
"""Which voxels are selected, as text: `x > 0`."""


def per_axis(value: Any) -> tuple[Any, Any, Any]:
    """Returns an argument that is one value or three as three values."""
    x, y, z = value if isinstance(value, tuple) else (value,) * 3
    return x, y, z


def several(value: int | tuple[int, ...]) -> tuple[int, ...]:
    """Returns an argument that is one number or several as several."""
    return value if isinstance(value, tuple) else (value,)
