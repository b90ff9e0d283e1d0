"""Looks at what a user has, and drafts the spec of it: what can be told is said, what cannot is left as `todo`."""
