"""Prepares a scan for its model, and brings scores back to the scan's grid; knows nothing of servers or tiles."""
