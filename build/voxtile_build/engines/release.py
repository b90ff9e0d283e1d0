"""The release of Triton that entries are built for, and that the server's files run.

Plans and packages fit one version of their library, and images of one release have the same versions.
"""

RELEASE = "26.07"
"""Of NVIDIA's containers. `server/deploy` names the same one."""

SERVER_IMAGE = f"nvcr.io/nvidia/tritonserver:{RELEASE}-py3"

TENSORRT_IMAGE = f"nvcr.io/nvidia/tensorrt:{RELEASE}-py3"
"""Has the TensorRT of SERVER_IMAGE, its parser and its builder."""

PYTORCH_IMAGE = f"nvcr.io/nvidia/pytorch:{RELEASE}-py3"
"""Has the PyTorch of SERVER_IMAGE, and a compiler."""
