"""Recognises a network of MONAI by its weights: names and shapes of the tensors give the constructor's arguments."""
