"""The one error that voxtile_server raises."""


class ServerError(Exception):
    """The server cannot start or has ended; the text says what was found and what to do."""
