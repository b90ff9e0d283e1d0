"""Weights in, entries of a Triton model repository out, each engine with its certificate."""

__version__ = "0.1.0"
