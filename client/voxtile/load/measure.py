"""Measures a service under load: clients connect, warm up, and are let loose. Knows nothing of terminals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from voxtile.errors import InputError, NoResponseError
from voxtile.io.scan import ScanInput
from voxtile.load.crew import Clients, Task
from voxtile.load.loop import Loop, Sample
from voxtile.load.mix import in_turn
from voxtile.load.percentiles import PERCENTILES
from voxtile.load.plan import CLOSED_CLIENTS, DEFAULT_SCANS, Load
from voxtile.load.result import LoadResult, result_of, wall_of
from voxtile.load.server import Watch
from voxtile.load.target import Target
from voxtile.options import Options
from voxtile.segmenter import Segmenter

MOST_FAILURES = 10
"""So many failures in a row end a load: a server that is gone will not come back for the hundreds of scans left."""

Progress = Callable[[int, int | None], object]
"""Called as progress(done, total) after each scan; the total is None where time decides."""


class LoadTest:
    """Clients that are ready for a load. A context manager, which reads the scan, connects and warms up.

    One segmentation by each model comes before anything is counted. After an interruption, `results` has what was
    measured up to then.

    Args:
        urls: HOST:PORT of the servers' gRPC services.
        shares: by each model's public name, its share of the scans.
        image: the scan; see `Segmenter.segment`. None where every model has its own.
        options: how to segment.
        own: by its public name, the scan of a model that is to get another one.

    Attributes:
        results: the loads that were measured.
    """

    def __init__(
        self,
        urls: Sequence[str],
        shares: Mapping[str, float],
        image: ScanInput | None,
        options: Options | None = None,
        own: Mapping[str, ScanInput] | None = None,
    ) -> None:
        if image is None and (without := sorted(set(shares) - set(own or {}))):
            raise InputError(f"expected a scan for each model, found none for {', '.join(without)}")
        self.results: list[LoadResult] = []
        self._urls, self._shares, self._options = urls, dict(shares), options or Options()
        self._images = {name: image for name in shares if image is not None} | dict(own or {})
        self._clients: list[dict[str, Task]] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> LoadTest:
        with contextlib.ExitStack() as stack:
            first = {name: self._connected(stack, name) for name in self._shares}
            tasks = {name: Task(one, one.load(self._images[name])) for name, one in first.items()}
            for one in tasks.values():
                one.segmenter.run(one.loaded)
            cards = {name: one.card for name, one in first.items()}
            self._watch = stack.enter_context(contextlib.closing(Watch(self._urls, self._options.connection, cards)))
            self._clients, self._open = [tasks], stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def run(self, load: Load, target: Target | None = None, progress: Progress = lambda *_: None) -> LoadResult:
        """Measures one load.

        Args:
            load: how hard to press.
            target: what the load has to keep; it ends early where it surely does not.
            progress: called after each scan.

        Returns:
            The result, which `results` has too.

        Raises:
            VoxtileError: no connection; or every scan failed, and this is the first failure.
        """
        self._employ(load.most_clients)
        planned, most = load.count, load.most_clients
        self._watch.begin()
        with Clients(self._clients[:most]) as crew:
            loop = Loop(load.demand(), in_turn(self._shares), crew, lambda samples: _ending(samples, target, planned))
            try:
                loop.run(lambda done: progress(done, planned))
            except BaseException:
                self._note(load, loop, target, "interrupted", crew.now())
                raise
        result = self._note(load, loop, target, loop.ended_early)
        if loop.samples and not result.scans:
            raise next(one.error for one in loop.samples if one.error is not None)
        return result

    def _connected(self, stack: contextlib.ExitStack, name: str) -> Segmenter:
        return stack.enter_context(Segmenter(self._urls, name, self._options))

    def _employ(self, count: int) -> None:
        """Makes sure that there are so many clients."""
        while len(self._clients) < count:
            loaded = self._clients[0]
            self._clients.append(
                {name: Task(self._connected(self._open, name), task.loaded) for name, task in loaded.items()}
            )

    def _note(
        self, load: Load, loop: Loop, target: Target | None, ended_early: str, ended_s: float = 0.0
    ) -> LoadResult:
        """Works out the result of a load, as far as it got, and keeps it."""
        done = [one for one in loop.samples if one.error is None]
        scans = {name: sum(one.model == name for one in done) for name in self._shares}
        exact = len(done) == len(loop.samples) and not loop.running and not any(one.retries for one in done)
        server = self._watch.end(wall_of(loop.samples, ended_s), scans, sum(one.tiles for one in done), exact=exact)
        result = result_of(
            loop.samples,
            self._shares,
            "closed" if load.rate is None else load.pattern,
            load.rate,
            load.most_clients,
            server,
            ended_early=ended_early,
            unfinished=loop.running + len(loop.waiting),
            ended_s=ended_s,
            percentiles=(*PERCENTILES, *([target.p] if target else [])),
        )
        if target is not None and ended_early != "interrupted":
            kept = not ended_early and not result.failed and target.kept([one.seconds for one in done])
            result = result.model_copy(update={"held": kept})
        self.results.append(result)
        return result


def _ending(samples: Sequence[Sample], target: Target | None, planned: int | None) -> str:
    """Why a load is to end now; empty where it is not."""
    last = samples[-MOST_FAILURES:]
    if len(last) == MOST_FAILURES and all(one.error is not None for one in last):
        return f"{MOST_FAILURES} scans in a row failed"
    if samples and isinstance(samples[-1].error, NoResponseError):
        return "no server answered for as long as a scan waits"  # each of the others would wait as long
    if target is None or planned is None:
        return ""
    if any(one.error is not None for one in samples):
        return "a scan failed"
    return f"it surely misses {target}" if target.lost([one.seconds for one in samples], planned) else ""


def run_load_test(
    urls: Sequence[str],
    model: str,
    image: ScanInput,
    *,
    clients: int = CLOSED_CLIENTS,
    scans: int = DEFAULT_SCANS,
    options: Options | None = None,
) -> LoadResult:
    """Lets several clients segment the same scan over and over; one segmentation before that is not counted.

    Args:
        urls: HOST:PORT of the servers' gRPC services.
        model: the model's public name.
        image: the scan; see `Segmenter.segment`.
        clients: clients that ask at once.
        scans: scans in all.
        options: how to segment.

    Raises:
        VoxtileError: as for a single segmentation; of single scans that fail, only where all do.
    """
    with LoadTest(urls, {model: 1.0}, image, options) as test:
        return test.run(Load(clients=clients, scans=scans))
