"""Reads and writes files; knows nothing of models."""
