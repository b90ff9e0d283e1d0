"""MONAI Label's protocol on the gateway's port, so that its clients work unchanged, 3D Slicer's module among them."""
