"""Says in words and sizes what a spec does to a scan, before anything is built. Knows no networks and no engines."""
