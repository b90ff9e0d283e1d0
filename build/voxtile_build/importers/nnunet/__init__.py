"""Reads a trained nnU-Net v2 folder, without nnU-Net."""
