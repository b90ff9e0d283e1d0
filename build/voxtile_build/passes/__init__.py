"""Graph passes: small, separate functions from one ONNX model to another, each verified by running both."""

from voxtile_build.passes.clean import clean
from voxtile_build.passes.compose_upsample import compose_upsample
from voxtile_build.passes.fold_constants import fold_constants
from voxtile_build.passes.group_windows import group_windows
from voxtile_build.passes.mixed_fp16 import to_mixed
from voxtile_build.passes.split_qkv import split_qkv
from voxtile_build.passes.verify import PassError, PassReport, Verified, apply_pass, verify_pass

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
