"""The engine ONNX Runtime: model.onnx, on any CPU, and on GPUs through its providers."""
