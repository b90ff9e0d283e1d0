"""Graph passes: small, separate functions from one ONNX model to another, each verified by running both."""

from .clean import clean
from .fold_constants import fold_constants
from .mixed_fp16 import to_mixed
from .verify import PassError, PassReport, apply_pass, verify_pass

__all__ = ["PassError", "PassReport", "apply_pass", "clean", "fold_constants", "to_mixed", "verify_pass"]
