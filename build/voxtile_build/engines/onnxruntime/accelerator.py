"""How ONNX Runtime's providers compute on a GPU, and where its TensorRT provider keeps the engine that it builds."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import onnx

from voxtile_build.engines.gpu import visible_gpu
from voxtile_build.engines.shapes import Shapes, serving_shapes
from voxtile_build.hashing import file_sha256
from voxtile_build.spec.serving import Serving

ACCELERATOR = "tensorrt"
"""Triton's name of the provider in `optimization.execution_accelerators.gpu_execution_accelerator`."""

CACHE = PurePosixPath("/var/cache/voxtile")
"""Folder for built engines, as the server sees it; `server/deploy` mounts a volume there.

The provider makes the last folder of a path and none above it, so each entry's folder lies directly in this one.
Instances of one entry are loaded one after the other, so the first one of each kind of GPU builds for all.
"""

CUDA = "cuda"
CUDA_OPTIONS = {"use_tf32": "0"}
"""ONNX Runtime's CUDA provider computes fp32 in TF32 unless it is told not to. The TensorRT provider has no such option
in Triton; the variable NVIDIA_TF32_OVERRIDE in `server/deploy` says the same to it."""

HASH_DIGITS = 12
UNKNOWN_GPU = "gpu"


def accelerator_parameters(entry: str, onnx_file: Path, serving: Serving) -> dict[str, str]:
    """Parameters of Triton's `tensorrt` execution accelerator; config.pbtxt takes them as strings.

    Each entry, graph and GPU has a folder of its own for the built engine: the provider tells engines of networks with
    the same structure, or for another GPU, not apart. Without the shapes, every new batch size would be another build
    of minutes. Precision is not named: it is in the graph.
    """
    shapes = serving_shapes(onnx.load(onnx_file, load_external_data=False), serving)
    gpu = visible_gpu()
    digest = file_sha256(onnx_file)[:HASH_DIGITS]
    folder = str(CACHE / f"{entry}-{digest}-{gpu.architecture if gpu else UNKNOWN_GPU}")
    return {
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "true",
        "trt_timing_cache_path": folder,
        "trt_layer_norm_fp32_fallback": "true",
        "trt_profile_min_shapes": _notation(shapes, "minimum"),
        "trt_profile_opt_shapes": _notation(shapes, "optimum"),
        "trt_profile_max_shapes": _notation(shapes, "maximum"),
    }


def _notation(shapes: Shapes, bound: str) -> str:
    """`name:1x1x96x96x96,…`, as the provider reads shapes."""
    return ",".join(f"{name}:{'x'.join(map(str, getattr(sizes, bound)))}" for name, sizes in shapes.items())
