"""Examines servers, a model and a scan before a run: one finding for each thing that a segmentation needs.

Knows nothing of terminals; repositories are examined in `voxtile.doctor`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from voxtile.card import Card
from voxtile.chains.parts.common_grid import common_grid
from voxtile.chains.prepare import prepare_scan, reader_of
from voxtile.cli.scan_entries import scan_entries
from voxtile.doctor.finding import Finding
from voxtile.errors import InputError, VoxtileError
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume
from voxtile.machine.memory import MIB
from voxtile.tiling.plan import plan_tiles, tile_shape
from voxtile.triton.catalogue import list_models
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.endpoint import Endpoint
from voxtile.triton.types import ServedModel


def examine(
    urls: Sequence[str], model: str | None, scans: Sequence[Path], connection: ConnectionConfig
) -> Iterator[Finding]:
    """Examines the servers, then the model, then the scan; each needs the one before.

    Args:
        urls: HOST:PORT of the servers' gRPC services.
        model: the model's public name; None to examine the servers alone.
        scans: the files of a scan, one for each channel; none to leave it out.
        connection: how to reach the servers.

    Raises:
        InputError: a scan is given without a model, or a TLS file cannot be used.
    """
    if scans and not model:
        raise InputError(f"{scans[0]}: expected --model with a scan, which is examined for a model, found none")
    served: list[ServedModel] = []
    behind: list[ServedModel] = []
    for url in urls:
        with contextlib.closing(Endpoint(url, connection)) as endpoint:
            try:
                yield from _server(endpoint, connection)
                yield from _whole_scans(endpoint, connection)
                if model:
                    served.append(endpoint.loaded_model(model))
                    yield _model(served[-1], url)
                    behind = [endpoint.loaded_model(name) for name in served[-1].card.models_behind]
                    yield from (_model(one, url) for one in behind)
                    yield _shared_memory(endpoint, url)
            except VoxtileError as error:
                yield Finding("error", "server", url, str(error))
    if len({one.card_text for one in served}) > 1:
        yield Finding(
            "error",
            "builds-differ",
            "servers",
            f"they serve different builds of {model!r}; give every server the same one",
        )
    if scans and served:
        yield from _scan(scans, served[0], behind)


def _server(endpoint: Endpoint, connection: ConnectionConfig) -> Iterator[Finding]:
    from voxtile.doctor.checks.exposure import check_served

    listings = list_models(endpoint)
    broken = [f"{listing.name} ({listing.problem})" for listing in listings if listing.at_fault]
    names = ", ".join(listing.name for listing in listings if not listing.problem)
    yield Finding("ok", "server", endpoint.url, f"a Triton server answers; it offers {names or 'no model with a card'}")
    if broken:
        yield Finding("error", "models", endpoint.url, f"models that cannot be used: {'; '.join(broken)}")
    ready = sorted({name for name, state in endpoint.models() if state == "READY"})
    yield from check_served(endpoint, connection, ready)


def _whole_scans(endpoint: Endpoint, connection: ConnectionConfig) -> Iterator[Finding]:
    for entry in scan_entries(endpoint, connection):
        can = (
            "busy with other scans; ask again"
            if entry.busy
            else f"its process answers; it segments whole scans with {entry.model}"
        )
        where = f"{entry.name} at {endpoint.url}"
        yield Finding("error" if entry.problem else "ok", "whole-scans", where, entry.problem or can)


def _model(model: ServedModel, url: str) -> Finding:
    certificate = model.card.certificates.get(model.card.engine)
    name = f"{model.card.name} at {url}"
    if certificate is None or not certificate.accepted:
        what = f"engine {model.card.engine} has no accepted certificate; build the model again"
        return Finding("error", "model", name, what)
    return Finding(
        "ok",
        "model",
        name,
        f"engine {model.card.engine} ({certificate.precision}), batches up to {model.max_batch_size}, certificate "
        f"accepted: Dice ≥ {certificate.dice_min:.4f}, {certificate.changed_fraction:.2e} of the voxels changed"
        + "".join(f"; {reservation}" for reservation in certificate.reservations),
    )


def _shared_memory(endpoint: Endpoint, url: str) -> Finding:
    shared = endpoint.can_share_memory()
    detail = "tiles go through shared memory" if shared else "not shared with this machine; tiles go through gRPC"
    return Finding("ok", "memory", f"memory of {url}", detail)


def _scan(scans: Sequence[Path], model: ServedModel, behind: Sequence[ServedModel]) -> Iterator[Finding]:
    name = scans[0].name
    try:
        volume = open_scan(scans, model.card.input_channels, reader_of(model.card))
        shape, tiles = _prepared(volume, model.card, [one.card for one in behind])
    except VoxtileError as error:
        yield Finding("error", "scan", name, str(error))
        return
    spacing = " × ".join(f"{size:.3g}" for size in volume.spacing)
    grid = " × ".join(map(str, shape))
    yield Finding(
        "ok",
        "scan",
        name,
        f"{' × '.join(map(str, volume.shape))} voxels of {spacing} mm, {volume.data.nbytes / MIB:.0f} MiB; "
        f"{grid} for the model, {tiles} tiles",
    )


def _prepared(volume: Volume, card: Card, behind: Sequence[Card]) -> tuple[tuple[int, ...], int]:
    """The grid of a model, and the number of its tiles; of a set, the common grid and the tiles of all its models.

    Where another model finds what a set looks at, the whole scan is counted.
    """
    if card.parts is None:
        shape = prepare_scan(volume, card).data.shape[1:]
        return shape, len(plan_tiles(shape, tile_shape(card, shape), card.tiling))
    common, parts = common_grid(volume, card).volume, {part.model for part in card.parts.models}
    return common.shape, sum(_prepared(common, one, ())[1] for one in behind if one.name in parts)
