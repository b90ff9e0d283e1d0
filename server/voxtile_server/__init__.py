"""Runs Triton on a model repository: the embedded server, its backends, and what it is installed from."""

__version__ = "0.1.0"
