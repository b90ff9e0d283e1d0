"""The backend `voxtile`: a scan in, a mask out. It tiles on the server and sends the tiles to a public entry."""
