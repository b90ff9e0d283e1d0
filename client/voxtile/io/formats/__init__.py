"""The file formats of scans and masks, a module each; `all` lists them. Knows nothing of models."""
