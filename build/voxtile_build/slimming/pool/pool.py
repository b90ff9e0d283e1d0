"""The pool: patches that the teacher labelled once, on the disk, to be shown to a student many times.

A list names the patches that are whole: a run that is killed leaves whole patches, and a damaged one is made again.
Knows neither networks nor training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from voxtile_build.arrays import Array
from voxtile_build.evaluation.samples import Scan
from voxtile_build.hashing import bytes_sha256
from voxtile_build.slimming.pool import mirrors
from voxtile_build.slimming.pool.asking import Asking
from voxtile_build.slimming.pool.augment import make_patch
from voxtile_build.slimming.pool.files import PatchFiles, unusable
from voxtile_build.slimming.pool.labeller import Kind, Labeller
from voxtile_build.slimming.pool.layout import Layout, check_room
from voxtile_build.slimming.pool.records import Record, Records
from voxtile_build.slimming.pool.survey import survey
from voxtile_build.spec.spec import Spec

FORMAT = 1
"""Of the files and of how a patch is made; a pool of another format is not gone on with."""

LIST = "patches.jsonl"


class Pool:
    """Patches in a folder.

    Attributes:
        folder: of the files.
        count: how many patches it is to have.
        layout: of a patch.
    """

    def __init__(
        self, folder: Path, spec: Spec, count: int, seed: int, *, kind: Kind = "logits", key: str = ""
    ) -> None:
        """Make a pool, or open what a run left of one: every patch is read and compared with its digest.

        Args:
            folder: for its files alone; made if absent.
            spec: the teacher's.
            count: how many patches.
            seed: of the patches.
            kind: what the teacher answers.
            key: a digest of what else the patches depend on: teacher and scans.

        Raises:
            SlimmingError: the folder holds the pool of another run, or cannot be read or written.
        """
        self.folder, self.count, self.layout = folder, count, Layout.of(spec)
        self._spec, self._seed, self._kind = spec, seed, kind
        self._files = PatchFiles(folder, self.layout)
        self._list = Records(folder / LIST, {**self._identity(), "key": key})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._records = {one.patch: one for one in self._list.read() if self._is_whole(one)}
            self._list.write(self._records[patch] for patch in sorted(self._records))
        except OSError as error:
            raise unusable(folder, error) from None

    def _identity(self) -> dict[str, object]:
        layout = self.layout
        shapes = {"image": layout.image, "target": layout.target, "dtype": layout.image_dtype}
        return {"format": FORMAT, "seed": self._seed, "count": self.count, "kind": self._kind, **shapes}

    def _is_whole(self, record: Record) -> bool:
        return 0 <= record.patch < self.count and self._files.digest(record.patch) == record.sha256

    @property
    def missing(self) -> tuple[int, ...]:
        """The patches that are not labelled yet, in order."""
        return tuple(patch for patch in range(self.count) if patch not in self._records)

    @property
    def voxels(self) -> Array:
        """[patch, class] voxels of each class in the teacher's answers, of the patches that are labelled, in order."""
        return np.array([self._records[patch].voxels for patch in sorted(self._records)], dtype=np.int64)

    @property
    def sha256(self) -> str:
        """Over all patches."""
        return bytes_sha256("".join(self._records[patch].sha256 for patch in sorted(self._records)).encode())

    def flips(self, mirrorings: Sequence[tuple[int, ...]] = ()) -> tuple[int, ...]:
        """Axes of the ROI along which patches may be shown mirrored, see `mirrors`.

        Args:
            mirrorings: the axes of each pass that the teacher takes the mean of.
        """
        overlaps = [one.mirrored for one in self._records.values() if one.mirrored]
        found = self.voxels.sum(axis=0) if self._records else ()
        return mirrors.agreeing(overlaps, found, self._axes, mirrors.own_axes(mirrorings))

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(len(self.layout.image) - 1))

    def label(
        self,
        scans: Sequence[Callable[[], Scan]],
        teacher: Labeller,
        *,
        mirrorings: Sequence[tuple[int, ...]] = (),
        begun: bool = False,
        told: Callable[[int, int], None] = lambda done, count: None,
    ) -> None:
        """Make and label the patches that are missing, scan after scan. Patch i depends on the seed and i alone.

        Args:
            scans: each reads a scan; called at most once, and only if patches of it are missing.
            teacher: labels.
            mirrorings: as for `flips`; such axes need not be asked about.
            begun: whether an interrupted run goes on, whose number of patches holds.
            told: called after each patch with how many are done, and of how many.

        Raises:
            SlimmingError: the disk lacks room or is full, or the teacher's answer cannot be used; what is labelled
                stays.
        """
        check_room(self.folder, self.layout, len(self.missing), may_be_fewer=not (begun or self._records))
        answered = self._spec.output.model_copy(update={"scores": self._kind, "dtype": "fp32"})
        asking = Asking(teacher, self.layout, answered)
        axes = [axis for axis in self._axes if axis not in mirrors.own_axes(mirrorings)]
        for index, read in enumerate(scans):
            own = [patch for patch in self.missing if patch * len(scans) // self.count == index]
            if own:
                self._label_scan(read(), own, asking, axes, told)

    def _label_scan(
        self, scan: Scan, own: list[int], asking: Asking, axes: Sequence[int], told: Callable[[int, int], None]
    ) -> None:
        found = survey(scan, self._seed)
        for number in own:
            patch = make_patch(np.random.default_rng([self._seed, number]), scan, found, self._spec)
            answer = asking.about(patch, scan.name)
            voxels = mirrors.voxels(answer.masks)
            asked = self._worth_asking(voxels)
            mirrored = asking.mirrored(patch, answer.masks, axes, scan.name) if asked else {}
            try:
                digest = self._files.write(number, answer.image, answer.scores)
                self._records[number] = Record(number, digest, voxels, mirrored)
                self._list.add(self._records[number])
            except OSError as error:
                raise unusable(self.folder, error) from None
            told(len(self._records), self.count)

    def _worth_asking(self, voxels: Sequence[int]) -> bool:
        asked = [one.voxels for one in self._records.values() if one.mirrored]
        known = [sum(one) for one in zip(*asked, strict=True)] or [0] * len(voxels)
        return len(asked) < mirrors.ASKED * self.count and mirrors.worth_asking(voxels, known)

    def batch(self, patches: Sequence[int], flips: Sequence[tuple[int, ...]]) -> tuple[Array, Array]:
        """Read patches.

        Args:
            patches: their numbers.
            flips: for each the axes of the ROI along which it is mirrored.

        Returns:
            Images [patch, channel, *roi] and targets [patch, class, *roi], float32.

        Raises:
            SlimmingError: the files are damaged or gone.
        """
        try:
            read = [self._files.read(patch) for patch in patches]
        except (OSError, EOFError) as error:
            raise unusable(self.folder, error) from None
        pairs = list(zip(read, flips, strict=True))
        images = np.stack([_mirrored(image, flip) for (image, _), flip in pairs])
        targets = np.stack([_mirrored(target, flip) for (_, target), flip in pairs])
        return images.astype(np.float32), targets.astype(np.float32)

    def remove(self) -> None:
        """Remove the pool's files, and its folder if nothing else is in it."""
        (self.folder / LIST).unlink(missing_ok=True)
        self._files.remove()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _mirrored(values: Array, axes: tuple[int, ...]) -> Array:
    """`values` [channel, *roi] mirrored along `axes` of the ROI."""
    return np.flip(values, tuple(axis + 1 for axis in axes))
