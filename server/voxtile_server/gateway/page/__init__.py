"""The gateway's page for people with a browser: drop a scan, watch the bar, see the mask over it, download it."""
