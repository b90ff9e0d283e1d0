"""What the gateway tells Prometheus: what it has done, what it has seen, and what is served behind it."""
