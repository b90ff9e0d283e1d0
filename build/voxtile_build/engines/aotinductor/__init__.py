"""The engine AOTInductor: model.pt2, the network as PyTorch compiles it ahead of time, on NVIDIA GPUs and on CPUs."""
