"""Graph passes: small, separate functions from one ONNX model to another, each verified by running both."""

from .clean import clean
from .compose_upsample import compose_upsample
from .fold_constants import fold_constants
from .group_windows import group_windows
from .mixed_fp16 import to_mixed
from .split_qkv import split_qkv
from .verify import PassError, PassReport, Verified, apply_pass, verify_pass

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
