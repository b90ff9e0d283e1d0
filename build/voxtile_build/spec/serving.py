"""The table [serving]: which engines are built, and how Triton runs them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from voxtile_build.spec.engines import DEFAULT_ENGINES, ENGINE_NAMES, EngineName
from voxtile_build.spec.table import NaturalInt, PositiveInt, Table


class Serving(Table):
    """How the server runs the model; keys are Triton's own words."""

    engines: Annotated[tuple[EngineName, ...], Field(min_length=1)] = Field(
        default=DEFAULT_ENGINES, description=f"engines to build: {', '.join(ENGINE_NAMES)}"
    )
    default_engine: EngineName | None = Field(
        default=None, description="engine behind the public name; left out: the first of engines"
    )
    max_batch_size: PositiveInt = Field(default=4, description="most tiles in one run of the engine")
    preferred_batch_size: tuple[PositiveInt, ...] | None = Field(
        default=None, description="batch sizes that the server waits for; left out: it waits for none"
    )
    max_queue_delay_microseconds: NaturalInt = Field(
        default=0, description="how long a tile may wait for others to fill a batch, in microseconds"
    )
    default_timeout_microseconds: NaturalInt = Field(
        default=0,
        description="time in the queue, in microseconds, after which a tile is refused; 0: no timeout. The server "
        "prefetches tiles for a busy engine only without a timeout and without priorities",
    )
    priority_levels: NaturalInt = Field(
        default=0,
        description="number of priority levels, 1 the highest; 0: no priorities, and the server prefetches tiles",
    )
    gpus: Literal["none", "all"] | tuple[NaturalInt, ...] = Field(
        default="none", description="GPUs that run the model: 'none' (CPU), 'all', or a list of indices"
    )
    hardware_compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = Field(
        default="none",
        description="other GPUs that a TensorRT plan fits: none, same_compute_capability, or ampere_plus (every "
        "GPU of compute capability 8.0 or more, which is slower)",
    )
    count: PositiveInt = Field(default=1, description="copies of the engine, on each GPU or on the CPU")
    threads: NaturalInt = Field(
        default=0, description="CPU threads of one instance; 0: the engine's own choice, all cores"
    )
    warm_up: bool = Field(default=True, description="whether the server runs each batch size once before ready")
    volume: bool | None = Field(
        default=None,
        description="whether entries are written that segment whole scans on the server; false removes them, left out: "
        "those that are there are kept in step",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Serving:
        if len(set(self.engines)) < len(self.engines):
            raise ValueError(f"expected every engine once, found {list(self.engines)}")
        if self.default_engine is not None and self.default_engine not in self.engines:
            raise ValueError(
                f"expected default_engine to be one of engines {list(self.engines)}, found {self.default_engine!r}"
            )
        too_large = [size for size in self.preferred_batch_size or () if size > self.max_batch_size]
        if too_large:
            raise ValueError(f"preferred_batch_size {too_large} lie above max_batch_size {self.max_batch_size}")
        if self.gpus == () or (isinstance(self.gpus, tuple) and len(set(self.gpus)) < len(self.gpus)):
            raise ValueError(f"expected gpus to name each GPU once, found {list(self.gpus)}; use 'none' for the CPU")
        return self
