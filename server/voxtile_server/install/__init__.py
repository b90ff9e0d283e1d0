"""Fetches tritonserver and the engines into a cache of their own; knows nothing of running them."""
