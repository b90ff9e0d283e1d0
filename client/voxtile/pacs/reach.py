"""Chooses how to speak with a PACS, by its address."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from voxtile.extras import require
from voxtile.pacs.access import Access
from voxtile.pacs.address import Address, WebAddress
from voxtile.pacs.base import Pacs


@contextlib.contextmanager
def connected(address: Address, access: Access) -> Iterator[Pacs]:
    """Gives what speaks with the PACS at `address`; nothing is sent yet.

    Raises:
        InputError: what `access` holds cannot be used there.
        MissingExtraError: a package for it is not installed.
    """
    require("pydicom", "dicom", "a PACS")
    with contextlib.closing(_pacs(address, access)) as pacs:
        yield pacs


def _pacs(address: Address, access: Access) -> Pacs:
    if isinstance(address, WebAddress):
        require("dicomweb_client", "dicom", "a PACS")
        from voxtile.pacs.web import WebPacs

        return WebPacs(address, access)
    require("pynetdicom", "dicom", "a PACS")
    from voxtile.pacs.node import NodePacs

    return NodePacs(address, access)
