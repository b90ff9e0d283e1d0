"""`python -m bench.volume`: whole scans by each door, against the client, with the memory of every process."""
