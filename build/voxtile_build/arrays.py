"""The types in which tiles and scores go from room to room. Knows nothing of specs, graphs or engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

Feed: TypeAlias = Mapping[str, Array]
"""Inputs of a graph by name, batch first: `roi` [batch, channel, *spatial], and `intensity` [batch, channel, 2]."""

Runner: TypeAlias = Callable[[Feed], Array]
"""Runs a graph, an engine or PyTorch: a feed in, `scores` [batch, score, *spatial] out."""
