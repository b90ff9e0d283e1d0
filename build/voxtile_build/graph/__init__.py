"""Turns a network into one ONNX graph and optimises it; knows no engine."""
