"""Sends tiles to Triton and brings scores back; knows nothing of scans or masks."""
