"""Mutation testing: changes the code in small ways and asks of each change whether a test fails; `make mutate`."""
