"""Finds the arithmetic of an engine: search, calibration, sensitivity, mixed precision."""
