"""Cuts a prepared scan into tiles and adds up their scores; knows nothing of servers or files."""
