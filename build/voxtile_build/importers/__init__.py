"""Trained models of other frameworks, brought to a spec and a network."""
