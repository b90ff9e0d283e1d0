"""The backend `pytorch`: model.pt2 of AOTInductor, with the names of tensors of Triton's C++ backend (`torch_aoti`).

It runs packages that voxtile-build has compiled for a CPU, and differs from the C++ backend in two ways. It compares
the config with what the package says of its tensors and of the CPU that it needs, which PyTorch does not. An answer
does not depend on the batch that its request came in.
"""
