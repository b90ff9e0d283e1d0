"""Segments many scans; knows nothing of how one scan is segmented."""
