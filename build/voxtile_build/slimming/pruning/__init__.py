"""Cuts channels out of a network, so that what is left fits the same class with smaller arguments. Trains nothing."""
