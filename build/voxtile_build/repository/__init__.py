"""Writes entries of the model repository: config.pbtxt, card, names, and how they are published."""
