"""Graph passes: each takes one ONNX graph and gives another; each is verified by running both."""
