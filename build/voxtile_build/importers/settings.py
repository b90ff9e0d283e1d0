"""Tables of a spec that do not follow from a trained model: whoever imports one may give them in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtile_build.errors import SourceError
from voxtile_build.spec.spec import Spec, parse_spec, read_toml

SETTINGS = ("serving", "precision", "acceptance")
SCANS = {"acceptance": "scans", "precision": "calibration"}
"""The keys that name scans."""


def read_settings(file: Path) -> dict[str, Any]:
    """The tables in the TOML `file`; scans that they name lie relative to it.

    Raises:
        SpecError: the file cannot be read, or is not TOML.
    """
    settings = read_toml(file)
    for section, key in SCANS.items():
        if isinstance(settings.get(section), dict) and key in settings[section]:
            settings[section][key] = _absolute(settings[section][key], file.parent.absolute())
    return settings


def spec_with_settings(file: Path, settings: Path) -> Spec:
    """The spec in the TOML `file`, with keys in place of its own from the tables in the TOML `settings`.

    Raises:
        SourceError: a table is none of SETTINGS.
        SpecError: as `load_spec`; both files are named.
    """
    fields, changes = read_toml(file), read_settings(settings)
    check_settings(changes)
    for section, table in changes.items():
        known = fields.get(section)
        fields[section] = {**known, **table} if isinstance(known, dict) and isinstance(table, dict) else table
    return parse_spec(fields, f"{file} with {settings}", file.resolve().parent)


def check_settings(settings: Mapping[str, Any], parts: Mapping[str, Sequence[str]] | None = None) -> None:
    """Refuse tables and keys that the trained model decides.

    Args:
        settings: the tables.
        parts: of further tables, the keys that may be given.

    Raises:
        SourceError: names the first such table or key.
    """
    allowed = (*SETTINGS, *(parts or {}))
    for section, table in settings.items():
        if section not in allowed:
            raise SourceError(f"settings: expected the sections {', '.join(allowed)}, found {section!r}")
        for key in table if section in (parts or {}) and isinstance(table, Mapping) else ():
            if key not in (parts or {})[section]:
                raise SourceError(
                    f"settings: {section}.{key}: expected {' or '.join((parts or {})[section])} alone, because the "
                    "trained model decides the rest"
                )


def refuse_scans(settings: Mapping[str, Any]) -> None:
    """Refuse scans for a cascade or a set: each of its models prepares a scan in its own way.

    Raises:
        SourceError: names the key.
    """
    for section, key in SCANS.items():
        if isinstance(settings.get(section), Mapping) and key in settings[section]:
            raise SourceError(
                f"settings: {section}.{key}: a cascade or a set is certified and calibrated on a generated volume, "
                "because its models prepare a scan in several ways; leave the key out"
            )


def _absolute(scans: Any, folder: Path) -> Any:
    if isinstance(scans, list):
        return [_absolute(scan, folder) for scan in scans]
    return str(folder / scans) if isinstance(scans, str) else scans
