"""Samples and metrics: what is compared, and by which numbers; knows no engine."""
