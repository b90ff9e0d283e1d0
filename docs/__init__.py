"""The documentation: pages as Markdown, and the generator of the reference."""
