"""Reads and checks models/NAME.toml; knows nothing of networks, engines or servers."""
