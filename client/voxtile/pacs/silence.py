"""Keeps the logs of what speaks with a PACS silent: they repeat names, UIDs and addresses."""

from __future__ import annotations

import logging

TALKATIVE = ("pynetdicom", "dicomweb_client", "retrying", "urllib3")
"""Loggers above those of all their modules. pynetdicom writes patients' names at INFO, urllib3 addresses at DEBUG."""


def silence() -> None:
    """Silences them for good."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
