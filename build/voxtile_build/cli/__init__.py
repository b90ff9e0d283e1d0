"""The command `voxtile-build`: turns arguments into calls of the library, and errors into exit codes."""
