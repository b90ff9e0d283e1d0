"""The command `voxtile`, also as `python -m voxtile`; says what to install where the extra `cli` is missing."""

from __future__ import annotations

import sys

CLI_MODULES = ("typer", "rich", "click")


def main() -> None:
    """Runs the command with the arguments of this process."""
    try:
        from voxtile.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in CLI_MODULES:
            raise
        sys.stderr.write(
            f"voxtile: the command needs {error.name}, which is not installed: pip install 'voxtile[cli]'\n"
        )
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
