"""`python -m docs.generate PAGE` prints a generated page, such as `rooms` or `cli`; without PAGE it lists them."""

from __future__ import annotations

import sys
from pathlib import PurePosixPath

from docs.generate.pages import GENERATED


def main(arguments: list[str]) -> int:
    """Prints the page that is asked for; returns 2 if there is none of that name."""
    pages = {PurePosixPath(place).stem: make for place, make in GENERATED.items()}
    if not arguments:
        sys.stdout.write("\n".join(pages) + "\n")
        return 0
    if arguments[0] not in pages:
        sys.stderr.write(f"expected one of {', '.join(pages)}, found {arguments[0]!r}\n")
        return 2
    sys.stdout.write(pages[arguments[0]]())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
