"""Graph passes: small, separate functions from one ONNX model to another, each verified by running both."""

from voxtile_build.graph.passes.clean import clean
from voxtile_build.graph.passes.compose_upsample import compose_upsample
from voxtile_build.graph.passes.fold_constants import fold_constants
from voxtile_build.graph.passes.group_windows import group_windows
from voxtile_build.graph.passes.split_qkv import split_qkv
from voxtile_build.graph.passes.verify import PassError, PassReport, Verified, apply_pass, verify_pass
from voxtile_build.precision.mixed_precision import to_mixed

__all__ = [
    "PassError",
    "PassReport",
    "Verified",
    "apply_pass",
    "clean",
    "compose_upsample",
    "fold_constants",
    "group_windows",
    "split_qkv",
    "to_mixed",
    "verify_pass",
]
