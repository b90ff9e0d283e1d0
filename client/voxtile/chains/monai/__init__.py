"""MONAI's chain: orientation, spacing, intensities, and the way back, without torch and without MONAI."""
