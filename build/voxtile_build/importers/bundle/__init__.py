"""Reads a MONAI bundle; runs nothing of it."""
