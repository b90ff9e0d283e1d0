"""What this process may use of its machine, and who else is running on it. Knows nothing of scans or servers."""
