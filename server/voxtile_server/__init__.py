"""Everything that runs Triton: the embedded server, its backends, the official container's compose file."""
