"""Python-based Triton backends; this package knows nothing of the rest of voxtile_server.

Triton's stubs run a copy of it, named `voxtile_backends` (voxtile_server/install/layout.py makes the copy), in an
interpreter that has NumPy 1.x and the engines and nothing else of ours. So all imports inside are relative.

A backend is a folder here whose `model.py` has a class `TritonPythonModel`; its folder's name is what an entry's
config.pbtxt calls `backend`. No other file names it. What it imports is pinned in voxtile_server/install/engines.txt.
"""
