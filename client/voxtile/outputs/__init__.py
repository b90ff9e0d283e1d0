"""Writes what comes beside the mask: report, preview, probabilities and prepared scans."""
