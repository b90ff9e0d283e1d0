"""Which class of MONAI a part of a bundle means, by its whole `_target_`; a name that only looks alike is refused."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from voxtile_build.errors import SourceError

TARGET, MODE, REQUIRES = "_target_", "_mode_", "_requires_"
BARE = re.compile(r"[A-Za-z_]\w*")
DOTTED = re.compile(r"monai(?:\.[A-Za-z_]\w*)+")
TRANSFORMS, INFERERS, NETWORKS, HANDLERS = (
    "monai.transforms",
    "monai.inferers",
    "monai.networks.nets",
    "monai.handlers",
)
"""Where MONAI has its classes, by kind."""


def monai_name(part: Mapping[str, Any], home: str, where: str) -> str:
    """The name of the class that `_target_` means: `UNet` of `UNet` and of `monai.networks.nets.UNet`.

    MONAI takes a bare name for a class of its own. A dotted name is taken only if it leads to the class that `home` has
    under its last word. No package but MONAI is imported.

    Args:
        part: a part of a configuration.
        home: MONAI's module for classes of this kind.
        where: names the part in errors.

    Raises:
        SourceError: there is no `_target_`, it means another class, or the part is not simply made from it.
    """
    target, mode = part.get(TARGET), part.get(MODE, "default")
    if part.get(REQUIRES):
        raise SourceError(f"{where}: {REQUIRES}: found {part[REQUIRES]!r}, which MONAI runs before; it is not run here")
    if mode != "default":
        raise SourceError(f"{where}: {MODE}: expected the default, found {mode!r}, which has no counterpart")
    if isinstance(target, str) and BARE.fullmatch(target):
        return target
    name = str(target).rpartition(".")[2]
    found = _monai_class(target) if isinstance(target, str) and DOTTED.fullmatch(target) else None
    if found is None or found is not getattr(importlib.import_module(home), name, None):
        same = f"{home}.{name}" if hasattr(importlib.import_module(home), name) else None
        advice = f"; if it does what {same} does, write that in a copy of the bundle" if same else ""
        raise SourceError(
            f"{where}: {TARGET}: expected a class of MONAI, found {target!r}, which is other code and is not run"
            f"{advice}"
        )
    return name


def _monai_class(path: str) -> Any:
    """What a dotted path in MONAI leads to; None where it leads nowhere."""
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None
