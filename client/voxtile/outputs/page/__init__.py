"""A page about one mask, in one file: the scan to look at, its structures in numbers, and what made them."""
