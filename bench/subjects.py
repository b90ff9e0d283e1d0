"""The networks that are measured: the model that voxtile-build builds of each, and the job of PyTorch.

The UNet and SwinUNETR 12 are the trained demo models, the PlainConvUNets those of `bench/weights/`. SwinUNETR 24 has
random weights from a fixed seed, and a last layer that was fitted to them (`bench/weights/swinunetr.md`). Dice between
two ways of running it says how far they agree, and nothing about how good it is.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from voxtile_build.importers.network import load_network
from voxtile_build.importers.nnunet.models import models_of
from voxtile_build.networks import make_network
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.spec.spec import Spec, load_spec

from .engines import Job
from .entries import OPEN, changed, engine_of
from .nnunet import BRAIN, CHEST, WEIGHTS, folder_of, prepared
from .scans import CT_LABELS, brain_crop, ct_scan, made
from .settings import Settings

MODELS = Path(__file__).parent.parent / "models"
SEED = 20  # of the weights of SwinUNETR; its shipped last layer fits no others


@dataclass(frozen=True)
class Subject:
    """A network that is measured."""

    key: str  # in the data
    title: str  # for readers
    model: Model  # to build, with open limits; certificate and calibration are done on small scans
    job: Job  # of PyTorch, see `engines.open_engine`; with `roi` and `overlap`
    tile: Path  # a scan of about one tile


def subject_of(key: str, settings: Settings) -> Subject:
    """Returns "unet", "swinunetr-trained", "swinunetr" (in a tiny run a tiny UNet), "nnunet" or "nnunet-ct"."""
    return _nnunet(key, settings) if key.startswith("nnunet") else _monai(key, settings)


def _monai(key: str, settings: Settings) -> Subject:
    """The spec of a demo model, with fp32 on the wire and with open limits."""
    demo = load_spec(MODELS / ("brain-unet.toml" if key == "unet" or settings.tiny else "brain-swinunetr.toml"))
    title = "MONAI UNet 8-16-32-64, trained" if key == "unet" else "SwinUNETR 12, trained"
    changes: dict[str, Any] = {"name": key, "input.dtype": "fp32", "input.orientation": None, "input.spacing": None}
    if settings.tiny:
        title = "tiny UNet"
        changes |= _untrained(demo, {"channels": [4, 8], "strides": [2]}, 32, None, settings)
    elif key == "swinunetr":
        size = 48 if settings.device == "cuda" else 24
        title, head = f"SwinUNETR {size}, weights not trained", WEIGHTS / f"swinunetr-{size}-head.safetensors"
        changes |= _untrained(demo, {"feature_size": size}, 96, head, settings)
    changes |= {"title": title, "tiling.background_at_most": 0.0, **_open(settings, 4 if key == "unet" else 1)}
    spec = changed(demo, changes)
    x, y, z = spec.tiling.roi_size
    tile = brain_crop(settings.data, (x, y, z))
    spec = changed(spec, {"acceptance.scans": ((tile,),), "precision.calibration": ((tile,),)})
    job = {"spec": spec, "roi": (x, y, z), "overlap": spec.tiling.overlap, "engine": "torch", "device": settings.device}
    return Subject(key, title, Model(spec, (Fold(key, partial(load_network, spec)),)), job, tile)


def _untrained(demo: Spec, args: dict[str, Any], roi: int, head: Path | None, settings: Settings) -> dict[str, Any]:
    """Returns the changes of a spec to other `args` of the network, with weights from the fixed seed.

    The last layer is that of the file `head`, if there is one.
    """
    args = {**demo.network.args, **args}
    file = settings.data / f"{demo.network.name}-{args.get('feature_size', 'tiny')}.safetensors"

    def save(path: Path) -> None:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(SEED)
            network = make_network(demo.network.name, args, 1, 3)
        network.load_state_dict(load_file(head) if head else {}, strict=False)
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)

    made(file, save)
    weights = {"weights.file": file, "weights.sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return {"network.args": args, "tiling.roi_size": (roi,) * 3, "tiling.overlap": 0.25, **weights}


def _nnunet(key: str, settings: Settings) -> Subject:
    """The network of the brain, or that of the made-up CT, whose int8 is calibrated on the whole CT."""
    chest, roi = key == "nnunet-ct", settings.pick(96, 64, 64)
    folder = folder_of(CHEST if chest else BRAIN, (roi,) * 3, settings.data)
    tile = ct_scan(settings.data, (128, 128, 64)) if chest else brain_crop(settings.data, (roi,) * 3)
    model = models_of(folder, key)[0]
    scans = [prepared(model.spec.nnunet or {}, scan) for scan in (tile, served_ct(settings) if chest else tile)]
    changes = {"acceptance.scans": ((scans[0],),), "precision.calibration": ((scans[1],),), **_open(settings, 1)}
    model = Model(changed(model.spec, changes), model.folds)
    steps = 150 if chest else 400  # as the model cards say
    title = f"nnU-Net PlainConvUNet 32…320, {steps} steps of training on this scan"
    job = {"folder": folder, "roi": (roi,) * 3, "overlap": 0.5, "engine": "torch", "device": settings.device}
    return Subject(key, f"{title}, {CT_LABELS} labels" if chest else title, model, job, tile)


def served_ct(settings: Settings) -> Path:
    """Returns the CT that "nnunet-ct" segments."""
    return ct_scan(settings.data, (512, 512, 300 if settings.device == "cuda" else 200))


def _open(settings: Settings, max_batch_size: int) -> dict[str, Any]:
    """Returns the changes of a spec that let everything pass, and that serve it by the device's engine alone."""
    engine = engine_of(settings.device)
    serving = {"engines": (engine,), "default_engine": engine, "max_batch_size": max_batch_size, "warm_up": False}
    serving |= {"gpus": "all"} if settings.device == "cuda" else {}
    return {f"acceptance.{key}": value for key, value in OPEN.items()} | {
        f"serving.{key}": value for key, value in serving.items()
    }
