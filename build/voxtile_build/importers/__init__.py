"""Importers: whatever holds a trained model becomes a spec and its networks, ready to be built."""
