"""What became of the mutants of one group, and the table that shows it. Knows nothing of how mutants are run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.mutation.judged import Change, is_judged

KILLED, TIMEOUT, SURVIVED, NO_TEST = "killed", "timeout", "survived", "no test"


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant.

    Attributes:
        module: the dotted name of its module.
        name: its name, which names it again in the same code.
        status: KILLED, TIMEOUT (which counts as killed), SURVIVED, or NO_TEST where no test reaches it.
        change: what it changes; None where it was killed.
        diff: the same as a text to read.
    """

    module: str
    name: str
    status: str
    change: Change | None = None
    diff: str = ""

    @property
    def alive(self) -> bool:
        return self.status in (SURVIVED, NO_TEST)


def unjudged(outcomes: Iterable[Outcome], judgements: dict[Change, str]) -> list[Outcome]:
    """Returns the survivors that nobody has judged."""
    return [one for one in outcomes if one.alive and not is_judged(one.change, judgements)]


def table(outcomes: list[Outcome], judgements: dict[Change, str]) -> str:
    """Returns a line for each module: how many mutants there were, and what became of them."""
    width = max((len(one.module) for one in outcomes), default=6)
    lines = [f"{'module':{width}}  mutants  killed  equivalent  survived   rate"]
    for module in sorted({one.module for one in outcomes}):
        mine = [one for one in outcomes if one.module == module]
        counts = Counter(one.status for one in mine)
        left = len(unjudged(mine, judgements))
        killed = counts[KILLED] + counts[TIMEOUT]
        equivalent = len(mine) - killed - left
        rate = killed / max(killed + left, 1)
        lines.append(f"{module:{width}}  {len(mine):7}  {killed:6}  {equivalent:10}  {left:8}  {rate:5.1%}")
    return "\n".join(lines)
