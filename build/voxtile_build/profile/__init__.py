"""Shows where an engine spends its time, by kind of operator and by layer."""
