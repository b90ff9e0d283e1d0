"""What the networks of a set share: one grid, one mask that each paints its labels into, and what is done to that."""
