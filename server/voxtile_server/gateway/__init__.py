"""The gateway: an HTTP service in front of any Triton, for people and programs that have a file and want a mask."""
