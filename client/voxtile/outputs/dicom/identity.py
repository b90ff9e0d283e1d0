"""Gives DICOM's objects identifiers that are the same whenever the same is made.

A series is named after what was asked for: the scan, the model, the options. An object is named after that and after
what is in it. So a second run of the same replaces the first one in an archive, or is skipped, and two objects that
differ never have one name. Knows nothing of DICOM's objects.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from voxtile.outputs.passport import Passport

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "voxtile:dicom")

UUID_ROOT = "2.25."
"""DICOM's root of identifiers that are UUIDs (PS3.5, annex B.2)."""


def uid_of(*parts: str) -> str:
    """A DICOM UID, always the same one for the same texts."""
    return UUID_ROOT + str(uuid.uuid5(NAMESPACE, "\0".join(parts)).int)


@dataclass(frozen=True)
class Identity:
    """The identifiers of all that is written about one segmentation.

    Attributes:
        asked: the digest of what was asked for.
        content: the digest of that, and of the labels that came of it.
    """

    asked: str
    content: str

    def series(self, kind: str) -> str:
        """The UID of the series of a kind of object."""
        return uid_of("series", kind, self.asked)

    def instance(self, kind: str) -> str:
        """The UID of an object of this kind."""
        return uid_of("instance", kind, self.content)

    def tracking(self, value: int) -> str:
        """The UID that follows one structure through all objects."""
        return uid_of("tracking", str(value), self.asked)

    def other(self, what: str) -> str:
        """A further UID that an object of this content needs."""
        return uid_of("other", what, self.content)


def identity_of(passport: Passport, source_uids: Sequence[str]) -> Identity:
    """The identifiers of a segmentation.

    Args:
        passport: what made the mask, with the digest of the mask.
        source_uids: the UIDs of the study and of all objects of the scan, in its order.
    """
    asked = hashlib.sha256("\0".join([passport.model_dump_json(exclude={"mask_sha256"}), *source_uids]).encode())
    content = asked.copy()
    content.update(passport.mask_sha256.encode())
    return Identity(asked.hexdigest(), content.hexdigest())
