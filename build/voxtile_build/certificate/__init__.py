"""Compares engines with the network in fp32 PyTorch, writes their certificates, and verifies them again."""
