"""A soak: clients segment without end while servers die, reject, reload and run out of memory; `make soak`."""
