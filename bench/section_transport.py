"""Our client against what one writes over a plain Triton client, on a network that costs nothing and on a real one."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput

from voxtile.segmenter import Segmenter
from voxtile.tiling.plan import plan_tiles, tile_shape
from voxtile.triton.connection import ConnectionConfig
from voxtile.triton.grpc_transport import connect_transport
from voxtile.triton.types import Request

from .entries import Entry, build_levels, engine_of, model_of
from .free import MAX_BATCH, free_entry
from .scan_rows import serving
from .scans import Shape, brain_crop, brain_files
from .section_parts import Rows, compare, rows_of
from .settings import Settings
from .timing import interleave, spread, timed
from .way_torch import normalised
from .way_voxtile import engine_seconds
from .workloads import network_of

Array = NDArray[Any]

MANY = 14
"""Classes of MONAI's SwinUNETR for the organs of the abdomen, background included."""


def measure(settings: Settings) -> Rows:
    return [*free_network(settings), *many_scores(settings), *real_network(settings)]


def free_network(settings: Settings) -> Rows:
    """One score, so that the wire is all there is: int16 in, fp16 out for us; fp32 for whoever knows no better."""
    roi, scan = _free_tiles(settings)
    wide = free_entry("free-fp32", 1, "fp32", "fp32", roi, settings)
    narrow = free_entry("free-narrow", 1, "int16", "fp16", roi, settings)
    with serving([wide.name, narrow.name], settings) as server:
        plain = PlainClients(server.grpc_url, server.http_url, wide.name, scan, roi, 0.25)
        limit = Limit(server.grpc_url, narrow.name, scan)
        with (
            Segmenter(server.grpc_url, narrow.name) as ours,
            Segmenter(server.grpc_url, wide.name, connection=ConnectionConfig(shared_memory=False)) as unshared,
            Segmenter(server.grpc_url, wide.name) as same_types,
        ):
            image = nib.load(scan)
            ways: dict[str, Callable[[], object]] = {
                "MONAI over a plain client, fp32 gRPC, batch 1": lambda: plain.grpc(1),
                "MONAI over a plain client, fp32 gRPC, batch 4": lambda: plain.grpc(MAX_BATCH),
                "MONAI over JSON by HTTP, a tile a request": plain.json,
                "Voxtile, fp32 both ways, gRPC": lambda: unshared.segment(image),
                "Voxtile, fp32 both ways": lambda: same_types.segment(image),
                "Voxtile, int16 in, fp16 out": lambda: ours.segment(image),
                "limit: the requests alone, int16 in, fp16 out": limit,
            }
            rows = compare(
                "transport, a network that costs nothing", ways, settings, f"{len(limit.tiles)} tiles of {roi}³", 120
            )
        limit.close()
        plain.close()
    return rows


def many_scores(settings: Settings) -> Rows:
    """The same with fourteen classes, as multi-organ networks have them; all scores, or one organ's mask."""
    roi, scan = _free_tiles(settings)
    wide = free_entry(f"free-{MANY}-fp32", MANY, "fp32", "fp32", roi, settings)
    narrow = free_entry(f"free-{MANY}-narrow", MANY, "int16", "fp16", roi, settings)
    one = free_entry(f"free-{MANY}-one", MANY, "int16", "uint8", roi, settings, one_mask=True)
    with serving([entry.name for entry in (wide, narrow, one)], settings) as server:
        plain = PlainClients(server.grpc_url, server.http_url, wide.name, scan, roi, 0.25)
        with (
            Segmenter(server.grpc_url, wide.name) as same_types,
            Segmenter(server.grpc_url, narrow.name) as ours,
            Segmenter(server.grpc_url, one.name) as masked,
        ):
            image = nib.load(scan)
            tiles = same_types.segment(image).report.tiles
            ways: dict[str, Callable[[], object]] = {
                "MONAI over a plain client, fp32 gRPC, batch 1": lambda: plain.grpc(1),
                "Voxtile, fp32 both ways": lambda: same_types.segment(image),
                "Voxtile, int16 in, fp16 out": lambda: ours.segment(image),
                "Voxtile, int16 in, one mask of them as uint8 out": lambda: masked.segment(image),
            }
            rows = compare(
                f"transport, a network of {MANY} scores that costs nothing",
                ways,
                settings,
                f"{tiles} tiles of {roi}³",
                120,
            )
        plain.close()
    return rows


def real_network(settings: Settings) -> Rows:
    """SwinUNETR in fp32 (a quick run: the trained one at 64³): the wire must not show."""
    key = "unet" if settings.tiny else "swinunetr-trained" if settings.quick else "swinunetr"
    network = network_of("tiny" if settings.tiny else key, settings)
    scan = _crop(settings, (40, 36, 33) if settings.tiny else (96, 96, 96) if settings.quick else (168, 168, 96))
    model = model_of(network, _crop(settings, network.roi), settings)
    entry = build_levels(model, key, ["fp32"], settings)["fp32"].get(engine_of(settings.device))
    if entry is None:
        return []
    with serving([entry.name], settings) as server:
        plain = PlainClients(server.grpc_url, server.http_url, entry.name, scan, network.roi[0], network.overlap, True)
        with Segmenter(server.grpc_url, entry.name) as ours:
            image = nib.load(scan)
            ways: dict[str, Callable[[], object]] = {
                "MONAI over a plain client, fp32 gRPC, batch 1": lambda: plain.grpc(1),
                "MONAI over JSON by HTTP, a tile a request": plain.json,
                "Voxtile, fp32 both ways": lambda: ours.segment(image),
            }
            rows = _with_overhead(ways, entry, server.grpc_url, network.title, settings)
        plain.close()
    return rows


def _with_overhead(
    ways: dict[str, Callable[[], object]], entry: Entry, url: str, title: str, settings: Settings
) -> Rows:
    """Rows with the server's own compute time beside the wall clock."""
    client = InferenceServerClient(url)
    compute: dict[str, list[float]] = {name: [] for name in ways}

    def run(name: str) -> float:
        before = engine_seconds(client, entry.engine_entry)
        seconds = timed(ways[name])()
        compute[name].append(engine_seconds(client, entry.engine_entry) - before)
        return seconds

    for work in ways.values():
        work()
    runs = interleave({name: partial(run, name) for name in ways}, settings.repetitions, settings.budget_s(100))
    rows = rows_of(f"transport, {title}", runs)
    for row in rows:
        engine = spread(compute[row["way"]]).median
        row |= {"engine_seconds": round(engine, 4), "overhead": round(row["seconds"] / engine, 3)}
    client.close()
    return rows


class PlainClients:
    """What one writes without a client of ours: MONAI's windows, and a predictor that asks and waits."""

    def __init__(
        self, url: str, http_url: str, model: str, scan: Path, roi: int, overlap: float, intensity: bool = False
    ) -> None:
        self.model, self.roi, self.overlap, self.intensity = model, (roi,) * 3, overlap, intensity
        self.client = InferenceServerClient(url)
        self.http = http.client.HTTPConnection(http_url)
        values = nib.load(scan).get_fdata(dtype=np.float32)
        self.x = torch.from_numpy(normalised(values, "nonzero") if intensity else values)[None, None]

    def grpc(self, batch: int) -> Array:
        return self._windows(self._ask_grpc, batch)

    def json(self) -> Array:
        return self._windows(self._ask_json, 1)

    def close(self) -> None:
        self.client.close()
        self.http.close()

    def _windows(self, ask: Callable[[Array], Array], batch: int) -> Array:
        with torch.inference_mode():
            scores = sliding_window_inference(
                self.x, self.roi, batch, lambda windows: torch.from_numpy(ask(windows.numpy())), overlap=self.overlap,
                mode="gaussian",
            )  # fmt: skip
            labels: Array = scores.argmax(1).to(torch.uint8).numpy()
        return labels

    def _inputs(self, windows: Array) -> list[tuple[str, Array]]:
        given: list[tuple[str, Array]] = [("roi", np.ascontiguousarray(windows))]
        if self.intensity:
            given.append(("intensity", np.tile(np.array([0, 1], np.float32), (len(windows), 1, 1))))
        return given

    def _ask_grpc(self, windows: Array) -> Array:
        tensors = []
        for name, values in self._inputs(windows):
            tensors.append(InferInput(name, values.shape, "FP32"))
            tensors[-1].set_data_from_numpy(values)
        scores: Array = np.array(self.client.infer(self.model, tensors).as_numpy("scores"))
        return scores

    def _ask_json(self, windows: Array) -> Array:
        inputs = [
            {"name": name, "shape": values.shape, "datatype": "FP32", "data": values.ravel().tolist()}
            for name, values in self._inputs(windows)
        ]
        body = json.dumps({"inputs": inputs})
        self.http.request("POST", f"/v2/models/{self.model}/infer", body, {"Content-Type": "application/json"})
        answer = self.http.getresponse()
        content = json.loads(answer.read())
        if answer.status != http.client.OK:
            raise RuntimeError(f"the server refused a tile: {content}")
        output = content["outputs"][0]
        return np.array(output["data"], np.float32).reshape(output["shape"])


class Limit:
    """The same requests, made beforehand, with nothing done to the answers: what the transport can do at most."""

    def __init__(self, url: str, model: str, scan: Path) -> None:
        self.transport = connect_transport(url, model)
        card = self.transport.model.card
        values = np.asanyarray(nib.load(scan).dataobj).astype(np.int16)
        self.tiles = list(plan_tiles(values.shape, tile_shape(card, values.shape), card.tiling))
        cut = [np.ascontiguousarray(values[tile.slices])[None] for tile in self.tiles]
        self.requests = [
            Request(index, np.stack(cut[first : first + MAX_BATCH]), None)
            for index, first in enumerate(range(0, len(cut), MAX_BATCH))
        ]

    def __call__(self) -> None:
        answers: Iterator[Array] = self.transport.infer(iter(self.requests))
        for _ in answers:
            pass

    def close(self) -> None:
        self.transport.close()


def _free_tiles(settings: Settings) -> tuple[int, Path]:
    """Edge of a ROI, and the scan, of the networks that cost nothing."""
    shape = (40, 36, 33) if settings.tiny else (168, 168, 168) if settings.quick else (184, 232, 184)
    return 16 if settings.tiny else 96, _crop(settings, shape)


def _crop(settings: Settings, shape: Shape) -> Path:
    brain_files(settings.data)
    return brain_crop(settings.data, shape)
