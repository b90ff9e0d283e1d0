"""Values that follow from the text of a Python expression in a configuration, found without running it."""
