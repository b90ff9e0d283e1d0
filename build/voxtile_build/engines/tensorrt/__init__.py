"""The engine TensorRT: model.plan, on NVIDIA GPUs."""
