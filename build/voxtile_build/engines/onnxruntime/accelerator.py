"""Settings with which ONNX Runtime's TensorRT provider builds and keeps the engine on the server itself."""

from pathlib import PurePosixPath

from voxtile_build.engines.tensorrt.errors import TensorRtError
from voxtile_build.engines.tensorrt.profile import Profile, profile_shapes

# Triton's name for the provider in `optimization.execution_accelerators.gpu_execution_accelerator`.
ACCELERATOR_NAME = "tensorrt"


def tensorrt_accelerator_parameters(
    model: str,
    gpu: str,
    cache: PurePosixPath,
    profile: Profile,
    workspace_bytes: int | None = None,
    onnx_sha256: str = "",
) -> dict[str, str]:
    """Parameters of Triton's `tensorrt` execution accelerator, all strings as config.pbtxt wants them.

    `cache` is a folder as the server sees it; engines go to `cache/MODEL[-HASH]/GPU`, because engines of
    networks with the same structure, or for another GPU, would otherwise be taken for one another. Without
    the profile, every new batch size would rebuild for minutes. No `precision_mode`: that lives in the graph.
    """
    for value, what in ((model, "model name"), (gpu, "GPU name")):
        if not value or "/" in value or value in {".", ".."}:
            raise TensorRtError(f"Expected a {what} that is one folder's name, got '{value}'.")
    folder = str(cache / (f"{model}-{onnx_sha256[:12]}" if onnx_sha256 else model) / gpu)
    parameters = {
        "trt_engine_cache_enable": "true",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "true",
        "trt_timing_cache_path": folder,
        "trt_layer_norm_fp32_fallback": "true",
        "trt_profile_min_shapes": profile_shapes(profile, "minimum"),
        "trt_profile_opt_shapes": profile_shapes(profile, "optimum"),
        "trt_profile_max_shapes": profile_shapes(profile, "maximum"),
    }
    if workspace_bytes is not None:
        # Triton translates this one name; it refuses the provider's own `trt_max_workspace_size`.
        parameters["max_workspace_size_bytes"] = str(workspace_bytes)
    return parameters
