"""Which pages of the site come from elsewhere than docs/: those that are generated, and files of the repository."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from docs.generate import api, card, certificate, cli, decisions, exit_codes, report, rooms, spec

GENERATED: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli.page,
    "reference/exit-codes.md": exit_codes.page,
    "reference/spec.md": spec.page,
    "reference/card.md": card.page,
    "reference/certificate.md": certificate.page,
    "reference/report.md": report.page,
    "reference/api.md": api.page,
    "explanation/rooms.md": rooms.page,
    "decisions/index.md": decisions.page,
}
"""The site's pages that are generated from the code."""

INCLUDED = {
    "index.md": "README.md",
    "how-to/spec.md": "models/README.md",
    "how-to/run-server.md": "server/README.md",
    "contributing/index.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "models/brain-unet.md": "models/brain-unet.md",
    "models/brain-swinunetr.md": "models/brain-swinunetr.md",
}
"""The site's pages that are files of the repository outside of docs/, by their place in the site."""


@cache
def titles() -> dict[str, str]:
    """The place of each generated page by its title, which is its first heading."""
    return {make().partition("\n")[0].removeprefix("# "): place for place, make in GENERATED.items()}
