"""What every engine answers, and what it makes. Names no engine."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from voxtile_build.arrays import Feed, Runner
from voxtile_build.errors import EngineError, SpecError
from voxtile_build.spec.spec import Spec

if TYPE_CHECKING:  # running a published entry needs no PyTorch
    from voxtile_build.engines.timing import Timed
    from voxtile_build.graph.graphs import Graphs


@dataclass(frozen=True)
class Compiled:
    """An engine in its version folder.

    Attributes:
        files: what it consists of.
        precision: what it computes in.
        run: how to run it.
        graphs: names of the graphs that it was made of, as in `graph.graphs`.
        parameters: of config.pbtxt; they take precedence over those of the engine.
        facts: what the certificate says of the precision.
        warnings: what the user should know of it, in sentences.
        seconds: how long parts of the build took, such as the attempts of a search, each with its name.
    """

    files: tuple[Path, ...]
    precision: str
    run: Runner
    graphs: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


Build = Callable[["Graphs", Spec, Path, frozenset[str]], Compiled]
"""(graphs, spec, version folder, names of the ONNX nodes that keep a higher precision) -> the engine."""


def _ranks_none(_: Graphs) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Variant:
    """One precision of one engine.

    Attributes:
        precision: its name in the spec.
        build: makes the engine.
        rank: the layers that may keep a higher precision, the most sensitive first; none if that is not possible.
    """

    precision: str
    build: Build
    rank: Callable[[Graphs], Sequence[str]] = _ranks_none


class Engine(ABC):
    """One engine. Its folder holds a module `engine` with its only instance, `ENGINE`.

    Attributes:
        name: in specs and in names of entries; also the name of its folder.
        backend: Triton's backend that serves it.
        gpu: whether it can run on a GPU.
        measured_on: the kind of device that certificates are made on, `cpu` or `gpu`.
        profiled_elsewhere: how to profile it, as the end of a sentence, where `profile` cannot; else empty.
        input_dtypes: data types that its backend takes as a tile's.
        platform: Triton's `platform`, where its backend runs files of several kinds; else empty.
        default_model_filename: the file that Triton's backend opens, where it must be told; else empty.
    """

    name: ClassVar[str]
    backend: ClassVar[str]
    gpu: ClassVar[bool]
    measured_on: ClassVar[str] = "cpu"
    profiled_elsewhere: ClassVar[str] = ""
    input_dtypes: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int16")
    platform: ClassVar[str] = ""
    default_model_filename: ClassVar[str] = ""

    @property
    @abstractmethod
    def version(self) -> str:
        """The version of its library, for the certificate."""

    @abstractmethod
    def variants(self) -> tuple[Variant, ...]:
        """Every precision that a spec can ask for, `auto` apart."""

    def serves_on(self, spec: Spec) -> str:
        """The kind of device that a server runs it on, `cpu` or `gpu`."""
        return "cpu" if spec.serving.gpus == "none" or not self.gpu else "gpu"

    def certified_on(self, spec: Spec) -> str:
        """The kind of device that the certificate is made on, `cpu` or `gpu`."""
        return self.measured_on

    def tensor_name(self, name: str) -> str:
        """What the engine's entry calls the tensor that a public model calls `roi`, `intensity` or `scores`."""
        return name

    def search(self, spec: Spec) -> Sequence[Variant]:
        """What precision `auto` tries for this spec, in this order: those that are faster wherever they pay, first."""
        return self.variants()

    def require_buildable(self, spec: Spec) -> None:  # noqa: B027  (most engines are built anywhere)
        """Checks, before anything is built, that this machine can build the engine for this spec.

        Raises:
            EngineError: the machine cannot build it.
            SpecError: the engine cannot serve what the spec asks for.
        """

    def require_input(self, spec: Spec) -> None:
        """Checks that the engine takes tiles of the spec's data type.

        Raises:
            SpecError: it takes other types only.
        """
        if spec.input.dtype not in self.input_dtypes:
            raise SpecError(
                f"{spec.name}: input.dtype: expected one that the engine {self.name} takes ("
                f"{', '.join(self.input_dtypes)}), found {spec.input.dtype}; change it, or take {self.name} out of the "
                "engines"
            )

    def settle(self, found: Compiled, kept: frozenset[str], graphs: Graphs, spec: Spec, folder: Path) -> Compiled:
        """The variant that `auto` found, in its own version folder.

        Args:
            found: as the search built it, in a folder of its own.
            kept: the layers that keep a higher precision.
            graphs: what it was made of.
            spec: the model.
            folder: the entry's version folder.
        """
        files = tuple(Path(shutil.move(file, folder / file.name)) for file in found.files)
        return replace(found, files=files, run=self.open(folder, {**self.parameters(spec), **found.parameters}))

    def open(self, folder: Path, parameters: Mapping[str, str], facts: Mapping[str, Any] = {}) -> Runner:
        """Opens a built engine in this process.

        Args:
            folder: the version folder.
            parameters: of the entry's config.pbtxt.
            facts: `precision_facts` of the entry's certificate.

        Raises:
            EngineError: this process cannot open it, or it was built for another machine.
        """
        raise EngineError(f"{self.name}: opened by its server alone; give --url HOST:PORT")

    def parameters(self, spec: Spec) -> Mapping[str, str]:
        """Parameters of config.pbtxt, under the names of Triton's backend."""
        return {}

    def accelerators(self, spec: Spec, compiled: Compiled) -> Mapping[str, Mapping[str, str]]:
        """Triton's GPU execution accelerators that the engine uses, each with its options."""
        return {}

    def profile(self, folder: Path, inputs: Feed, parameters: Mapping[str, str], runs: int) -> Timed:
        """Times a built engine with its own profiler.

        Args:
            folder: the version folder.
            inputs: of every run.
            parameters: of the entry's config.pbtxt.
            runs: how often it is run with the profiler, and how often without.

        Raises:
            EngineError: it does not load or run, or cannot be profiled in this process.
        """
        raise EngineError(f"{self.name}: {self.profiled_elsewhere or 'has no profiler'}")
