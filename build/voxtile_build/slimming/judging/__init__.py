"""Judges a student: how far it agrees with its teacher on scans that it never saw, and what both cost."""
