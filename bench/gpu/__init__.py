"""`python -m bench.gpu`: what one GPU does with the networks, in a run of minutes. See docs/performance.md.

It needs PyTorch, and the few wheels that docs/how-to/gpu.md names; no server, and nothing of voxtile-build.
"""
