"""`make bench`: everything measured against everything else in one run."""
