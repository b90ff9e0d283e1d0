"""The samples that reduced precision is calibrated and searched on: whole scans, and tiles cut from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from voxtile_build.arrays import Feed
from voxtile_build.errors import ScanError
from voxtile_build.evaluation.samples import Scan, phantom_scan, scans_of
from voxtile_build.evaluation.tiles import Tile, cut_tiles, tile_inputs
from voxtile_build.spec.spec import Spec

KEY = "precision.calibration"
# NNCF's own default is 300 inputs of 2D images; a 3D tile has as many voxels as dozens of those.
MOST_TILES = 32


@dataclass(frozen=True)
class Calibration:
    """Calibration samples.

    Attributes:
        scans: the scans.
        tiles: at most MOST_TILES tiles of them.
        feeds: the graph's inputs for each tile alone.
        generated: whether the spec names no scans; the only one is then the phantom, which says little of real ones.
    """

    scans: tuple[Scan, ...]
    tiles: tuple[Tile, ...]
    feeds: tuple[Feed, ...]
    generated: bool

    @property
    def example(self) -> Feed:
        """One tile that has structure in it, for where a single one must do."""
        return next(feed for tile, feed in zip(self.tiles, self.feeds, strict=True) if tile.name == "middle")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON for the certificate."""
        scans = [{"name": scan.name, "sha256": scan.sha256} for scan in self.scans]
        return {"scans": scans, "tiles": len(self.tiles), "generated": self.generated}


def calibrate(spec: Spec) -> Calibration:
    """Read the calibration scans of a spec and cut their tiles; the phantom's where the spec names none.

    Raises:
        ScanError: a file is no scan or of another kind than the model takes, or a channel has one value only.
    """
    named = spec.precision.calibration
    # Acceptance scans are not used: an engine looks too good on scans that it was fitted to.
    scans = scans_of(named, spec, KEY) if named else (phantom_scan(spec),)
    for scan in scans:
        _check_structure(scan)
    # Tile by tile over all scans, so that the limit leaves out no scan.
    cut = [cut_tiles(scan, spec) for scan in scans]
    tiles = tuple(tile for row in zip(*cut, strict=True) for tile in row)[:MOST_TILES]
    feeds = tuple(tile_inputs(spec, tile.roi[None], tile.statistics[None]) for tile in tiles)
    return Calibration(scans, tiles, feeds, not named)


def _check_structure(scan: Scan) -> None:
    for index, channel in enumerate(scan.volume):
        lowest, highest = float(np.min(channel)), float(np.max(channel))
        if lowest == highest:
            raise ScanError(
                f"{KEY}: {scan.name}: all voxels of channel {index} hold {lowest:g}, so nothing can be calibrated on "
                "it; name a scan of the kind that the model is for"
            )
