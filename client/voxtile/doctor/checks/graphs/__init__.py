"""Heads of engines' graphs, ONNX and OpenVINO's IR: what they say of themselves, and whether a configuration fits."""
