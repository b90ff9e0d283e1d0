"""Segments the cases of a manifest, as one of many shards; knows nothing of how a case is segmented."""
