"""Puts the listener together: the spool, the door in front of it, and who works on what comes in."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from voxtile.outputs.dicom.write import check_kinds
from voxtile.triton.connection import ConnectionConfig
from voxtile_server.listener import door, spool
from voxtile_server.listener.audit import Audit
from voxtile_server.listener.intake import Intake
from voxtile_server.listener.making import Maker
from voxtile_server.listener.service import Service
from voxtile_server.listener.settings import Settings


@contextlib.contextmanager
def listening(settings: Settings, urls: tuple[str, ...], connection: ConnectionConfig) -> Iterator[int]:
    """Listens and works within the block; gives the port.

    What is in work at the end of the block is begun again the next time.

    Args:
        settings: what is done with what.
        urls: HOST:PORT of the gRPC service of one Triton or several.
        connection: how to reach them.

    Raises:
        VoxtileError: it cannot listen, or the spool cannot be used.
    """
    check_kinds({kind for rule in settings.rule for kind in rule.kinds})
    stopping = threading.Event()
    with spool.opened(settings.spool) as place:
        audit = Audit(settings.audit or place.folder / "audit.jsonl")
        intake = Intake(place, settings, audit)
        maker = Maker(urls, connection, place, settings.limits.max_ram_mib, stopping)
        work = threading.Thread(target=Service(intake, maker, settings, audit, stopping).run, name="voxtile-listener")
        with door.opened(settings.listen, settings.limits.object_mib, intake.take, intake.ended) as port:
            work.start()
            try:
                yield port
            finally:
                stopping.set()
        work.join()
