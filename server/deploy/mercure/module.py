"""A processing module of mercure (https://mercure-imaging.org): reads its settings, and calls `voxtile dicom`.

mercure starts the container with the images and task.json in $MERCURE_IN_DIR, and takes what is in $MERCURE_OUT_DIR
afterwards: objects, and result.json for its database. It runs without the rest of Voxtile's server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SWITCHES = ("sr", "sc", "rtstruct", "mirror", "skip_empty")
NOT = {"mirror": "--no-mirror"}
VALUES = (
    "model", "url", "seg", "series", "modality", "description", "gaps", "tilt", "overlap", "mode", "max_ram", "nan",
    "posinf", "neginf",
)  # fmt: skip
"""The settings that the module takes; each is an option of `voxtile dicom`."""

REPORT = "result.json"
NAME = "{SeriesInstanceUID}#{SOPInstanceUID}.dcm"
"""How mercure names files, so that a further module finds its series by them."""


class WrongSetting(Exception):
    """Something that mercure was told, or tells, cannot be used."""


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings that task.json holds for this module.

    Raises:
        WrongSetting: there is no such file, or it is none of mercure's.
    """
    try:
        task = json.loads((folder / "task.json").read_bytes())
        settings = (task.get("process") or {}).get("settings") or {}
    except (OSError, ValueError, AttributeError):
        raise WrongSetting(f"{folder}: expected mercure's task.json, found none that can be read") from None
    if not isinstance(settings, dict):
        raise WrongSetting("settings: expected names and values, found something else")
    return settings


def options_of(settings: dict[str, Any]) -> list[str]:
    """The options of `voxtile dicom` for settings.

    Raises:
        WrongSetting: one is unknown, or has a value of another kind.
    """
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if name in SWITCHES and isinstance(value, bool):
            words += [f"--{flag}"] if value else [NOT[name]] if name in NOT else []
        elif name in VALUES and isinstance(value, str | int | float) and not isinstance(value, bool):
            words.append(f"--{flag}={value}")
        elif name in (*SWITCHES, *VALUES):
            kind = "true or false" if name in SWITCHES else "a text or a number"
            raise WrongSetting(f"setting {name!r}: expected {kind}, found {type(value).__name__}")
        else:
            raise WrongSetting(f"setting {name!r}: expected one of {', '.join((*SWITCHES, *VALUES))}")
    if "model" not in settings:
        raise WrongSetting('settings: expected a model, found none; add "model": "NAME" in mercure')
    return words


def run(inputs: Path, output: Path) -> int:
    """Segments what mercure gives.

    Args:
        inputs: the folder with images and task.json.
        output: the folder for objects and result.json.

    Returns:
        The exit code of `voxtile dicom`; 2 where the settings cannot be used. Without 0, nothing is left in `output`.
    """
    try:
        options = options_of(settings_of(inputs))
    except WrongSetting as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix=".voxtile-", dir=output) as folder:
        made = Path(folder)
        command = ["voxtile", "dicom", str(inputs), str(made), "--quiet", f"--json={made / REPORT}", *options]
        code = subprocess.run(command, check=False).returncode
        if code == 0:
            for file in sorted(made.glob("*.dcm")):
                file.replace(output / name_of(file))
            (made / REPORT).replace(output / REPORT)
    return code


def name_of(file: Path) -> str:
    """What mercure calls an object."""
    from pydicom import dcmread

    header = dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID", "SOPInstanceUID"])
    return NAME.format(SeriesInstanceUID=header.SeriesInstanceUID, SOPInstanceUID=header.SOPInstanceUID)


def main() -> int:
    """Runs the module in the folders that mercure names.

    Returns:
        The exit code; mercure takes all but 0 for a failure.
    """
    folders = [os.environ.get(name) for name in ("MERCURE_IN_DIR", "MERCURE_OUT_DIR")]
    if not all(one and Path(one).is_dir() for one in folders):
        sys.stderr.write("error: expected folders in MERCURE_IN_DIR and MERCURE_OUT_DIR, which mercure sets\n")
        return 2
    return run(Path(str(folders[0])), Path(str(folders[1])))


if __name__ == "__main__":
    sys.exit(main())
