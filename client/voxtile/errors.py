"""Every error that Voxtile raises on purpose.

VoxtileError                 exit code
├── InputError               2   a scan, a folder or an argument that cannot be used
├── OutputError              2   the mask, report or preview cannot be written
├── ModelError               2   the server does not offer this model, or its card cannot be used
│   └── NoCardError          2   an entry without a card: an engine behind a public name, or none of ours
├── ServerUnavailable        2   no server answers at the address
├── MemoryLimitError         2   the scan cannot be segmented within the memory allowed
└── TileError                3   a tile failed on every server and every try

Each message says what was expected, what was found, where, and what to do.
"""


class VoxtileError(Exception):
    """Base of all errors meant for the user; `exit_code` is what the commands end with."""

    exit_code = 2


class InputError(VoxtileError):
    """A scan, a folder or an argument that cannot be used."""


class OutputError(VoxtileError):
    """The mask, report or preview cannot be written."""


class ModelError(VoxtileError):
    """The server does not offer this model, or the model's card cannot be used."""


class NoCardError(ModelError):
    """An entry without a card: an engine behind a public name, or none of Voxtile's."""


class ServerUnavailable(VoxtileError):
    """No server answers at the address given."""


class MemoryLimitError(VoxtileError):
    """The scan cannot be segmented within the memory allowed."""


class TileError(VoxtileError):
    """A tile failed on every server and every try."""

    exit_code = 3
