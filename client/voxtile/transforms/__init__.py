"""MONAI's transforms as specs and cards name them: their arguments and defaults, checked; does nothing to a scan."""
