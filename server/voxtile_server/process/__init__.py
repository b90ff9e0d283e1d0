"""Starts, watches and ends the tritonserver process: ports, shared memory, log."""
