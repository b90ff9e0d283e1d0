"""Models that are loaded when a client asks for them, and unloaded to make room or when nobody uses them.

`rules` decides, `catalogue` knows what could be loaded, `triton` loads and unloads, `door` lets clients ask through
Triton itself, and `service` makes them one. None of them starts or ends tritonserver.
"""
