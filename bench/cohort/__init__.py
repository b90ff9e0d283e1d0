"""`python -m bench.cohort`: thousands of tiny scans in one manifest: what a case costs, its memory, and three kills."""
