"""What a public name remembers of its versions: those that it stood for before, and those that were removed.

Both are parameters of its config, so that they move with the entry. Triton and clients do not look at them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise

from tritonclient.grpc import model_config_pb2 as pb

HISTORY = "history"
"""The parameter of a public config with the versions that the name stood for before, the oldest first."""
REMOVED = "removed"
"""The parameter with the numbers of versions that were removed: masks name them, so no other version gets them."""
NUMBER = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Past:
    """What a public name remembers.

    Attributes:
        history: the versions that it stood for before, the oldest first.
        removed: the versions that were removed.
    """

    history: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()

    def without(self, number: int, public: int) -> Past:
        """The same after the removal of version `number`; `public` is the one that the name stands for.

        A rollback passes the removed version over, and goes to another version each time, as before.
        """
        steps = [one for one in (*self.history, public) if one != number]
        kept = tuple(one for one, following in pairwise(steps) if one != following)
        return Past(kept, tuple(sorted({*self.removed, number})))

    def with_history(self, history: tuple[int, ...]) -> Past:
        """The same with another history."""
        return replace(self, history=history)

    def write(self, config: pb.ModelConfig) -> None:
        """Put it into a config, in place of what is there."""
        for parameter, numbers in ((HISTORY, self.history), (REMOVED, self.removed)):
            config.parameters.pop(parameter, None)
            if numbers:
                config.parameters[parameter].string_value = " ".join(map(str, numbers))


def past_of(config: pb.ModelConfig) -> Past:
    """What a public config remembers; words that are no versions are left out."""
    return Past(_numbers(config, HISTORY), _numbers(config, REMOVED))


def _numbers(config: pb.ModelConfig, parameter: str) -> tuple[int, ...]:
    if parameter not in config.parameters:
        return ()
    words = config.parameters[parameter].string_value.split()
    return tuple(int(word) for word in words if NUMBER.fullmatch(word))
