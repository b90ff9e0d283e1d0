"""Fuzzing: readers get damaged and odd files and may answer with nothing but their own errors; `make fuzz`."""
