"""Makes a small student of a large teacher: prunes its channels, then trains it on what the teacher answers."""
