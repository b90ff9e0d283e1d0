"""The page about a batch: one row a case, with a picture, volumes, and what differs much from the other cases."""
