"""The engines: one folder each, which owns what the engine can build, how it runs, its config and its checks.

Engines do not import each other; what they share stands beside them. `voxtile_build.spec.engines` lists their names.
Nothing outside this package asks which engine it has: it asks the engine.
"""

from __future__ import annotations

import importlib

from voxtile_build.engines.base import Engine
from voxtile_build.errors import EngineError
from voxtile_build.spec.engines import ENGINE_NAMES


def find_engine(name: str) -> Engine:
    """The engine called `name`.

    Raises:
        EngineError: there is none.
    """
    if name not in ENGINE_NAMES:
        raise EngineError(f"engine {name!r} cannot be built here; this installation builds {', '.join(ENGINE_NAMES)}")
    # By name, so that using one engine does not load the libraries of all.
    engine: Engine = importlib.import_module(f"{__name__}.{name}.engine").ENGINE
    return engine
