"""Changes the code in small ways and says which changes no test notices.

    python -m tests.mutation [MODULE | GROUP]… [--sample 0.2] [--survivors]

Ends with 1 where a mutant survives that `equivalents.toml` does not judge. Everything is written to out/mutate.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from tests.mutation.functions import run_functions
from tests.mutation.groups import ROOT, Group, chosen, read_groups
from tests.mutation.judged import Change, read_judgements
from tests.mutation.left_out import run_left_out
from tests.mutation.results import Outcome, table, unjudged
from tests.mutation.staging import lay_out

OUT = ROOT / "out" / "mutate"
SURVIVORS = OUT / "survivors.json"


def main(words: list[str]) -> int:
    options = _options(words)
    try:
        groups = chosen(read_groups(), options.modules)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    only = json.loads(SURVIVORS.read_text()) if options.survivors else []
    if options.survivors and not only:
        print("the last run left no survivors")
        return 0
    judgements, outcomes, failed = read_judgements(), [], []
    for group in groups:
        begun = time.monotonic()
        try:
            found = _run(group, options, only)
        except RuntimeError as error:  # one group's tests that fail cost no other group
            print(error, file=sys.stderr, flush=True)
            failed.append(group.name)
            continue
        for one in unjudged(found, judgements):
            print(f"\n{one.status}: {one.name}\n{one.diff}")
        print(f"\n{group.name}: {len(found)} changes in {time.monotonic() - begun:.0f} s", flush=True)
        outcomes += found
        SURVIVORS.write_text(json.dumps([one.name for one in outcomes if one.alive], indent=1))
    return _report(outcomes, judgements, failed, options)


def _options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation", description=__doc__.partition("\n")[0] if __doc__ else ""
    )
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help="paths of modules or names of groups; all by default"
    )
    parser.add_argument("--sample", type=float, default=1.0, help="the share of the mutants that is run, from 0 to 1")
    parser.add_argument("--seed", type=int, default=17, help="chooses the sample")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="mutants that are run at once")
    parser.add_argument("--survivors", action="store_true", help="only the mutants that the last run has left alive")
    return parser.parse_args(words)


def _run(group: Group, options: argparse.Namespace, only: list[str]) -> list[Outcome]:
    stage = OUT / group.name
    lay_out(stage, group)
    arguments = (stage, group, options.workers, options.sample, options.seed, only)
    return [*run_functions(*arguments), *run_left_out(*arguments)]


def _report(
    outcomes: list[Outcome], judgements: dict[Change, str], failed: list[str], options: argparse.Namespace
) -> int:
    left = unjudged(outcomes, judgements)
    print(f"\n{table(outcomes, judgements)}")
    if options.sample < 1 and not options.survivors:
        print(f"a sample of {options.sample:.0%} of the mutants, chosen by seed {options.seed}")
    if failed:
        print(f"not run: {', '.join(failed)}")
    print(f"{len(left)} survivors that nobody has judged" if left else "every survivor is judged")
    return 1 if left or failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
