"""The checks: each finds faults of one kind in entries, in their files, or in what serves them."""
