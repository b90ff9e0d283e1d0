"""Builds entries of a Triton model repository from trained weights, each engine with its certificate."""

__version__ = "0.1.0"
