"""Reads a network from one file: ONNX, TorchScript or torch.export."""
