"""nnU-Net v2's own preprocessing, export and post-processing, without torch and without nnunetv2."""
