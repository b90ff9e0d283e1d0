"""The backend `onnxruntime`: model.onnx, with the config fields of Triton's C++ backend of that name."""
