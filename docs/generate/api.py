"""The page of the Python API: the public names of each distribution, which mkdocstrings then fills in."""

from __future__ import annotations

import voxtile

INTRODUCTION = """\
# Python API

Types and docstrings are those of the code. `import voxtile` loads nothing until a name is first used."""
FIRST = ("Segmenter", "Options", "Segmentation", "Report", "segment_folder", "RemoteNetwork", "ConnectionConfig")
SERVER = ("voxtile_server.embedded.EmbeddedServer", "voxtile_server.options.ServerOptions")
BUILD = ("voxtile_build.spec.spec.load_spec", "voxtile_build.build.build")


def page() -> str:
    """Returns the page as Markdown with mkdocstrings' directives."""
    names = sorted(voxtile.__all__, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    errors = [name for name in names if _is_error(name)]
    blocks = [
        INTRODUCTION,
        _part("voxtile", [f"voxtile.{name}" for name in names if name not in errors]),
        _part("voxtile: errors", [f"voxtile.{name}" for name in errors]),
        _part("voxtile_server", SERVER),
        _part("voxtile_build", BUILD),
    ]
    return "\n\n".join(blocks) + "\n"


def _is_error(name: str) -> bool:
    value = getattr(voxtile, name)
    return isinstance(value, type) and issubclass(value, Exception)


def _part(title: str, names: tuple[str, ...] | list[str]) -> str:
    return "\n\n".join([f"## {title}", *(f"::: {name}" for name in names)])
