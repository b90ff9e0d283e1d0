"""Asks whether a series in the spool is complete. Knows nothing of what is done with it."""

from __future__ import annotations

from voxtile.errors import VoxtileError
from voxtile.pacs.address import Wanted
from voxtile.pacs.patience import Passing
from voxtile.pacs.reach import connected
from voxtile_server.listener.intake import Header
from voxtile_server.listener.series import Series
from voxtile_server.listener.settings import Settings


def why_incomplete(series: Series, header: Header, settings: Settings) -> str | None:
    """Why a series of which nothing more comes may lack slices, in words; None where it is complete.

    Where a PACS is asked, its number counts: neither a shorter series nor one that still grows there is complete.
    """
    if series.told:
        return None
    if series.lacks:
        return (
            f"{len(series.lacks)} or more objects of it were not kept: they fitted no rule, or came with the UID of "
            "another one; send the series again"
        )
    if series.missing:
        return (
            f"{series.missing} objects were there before, and were removed after {settings.keep.hours:g} hours; send "
            "the whole series again"
        )
    if settings.complete.count_at is not None:
        return _why_not_counted(series, header, settings, settings.complete.count_at)
    if series.is_cut_off and settings.complete.cut_off == "wait":
        return "an association that carried it broke; send the series again"
    return None


def _why_not_counted(series: Series, header: Header, settings: Settings, name: str) -> str | None:
    address, access = settings.reach(name)
    try:
        with connected(address, access) as pacs:
            there = pacs.count(Wanted(header.study, header.series))
    except Passing as passing:
        return str(passing.error)
    except VoxtileError as error:
        return str(error)
    if there is None:
        return f"{address.name} does not say how many objects it has of the series"
    if there != series.count:
        return f"{series.count} objects are here, {there} at {address.name}"
    return None
