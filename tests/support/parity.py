"""How far a served network may differ from PyTorch, where only the order of fp32 sums differs."""

PROBABILITY_ERROR = 1e-3
"""Convolutions in another order of sums: what fp32 engines may differ by, on the scale of probabilities."""

FLIPPED = 1e-5
"""Voxels whose two best classes lie closer than that error; one in 100,000."""
