"""Fits a student to a pool of labelled patches. Knows neither teachers nor scans.

With a budget in steps, the same seed gives the same weights bit for bit on one CPU thread, however often the run was
killed: whatever is random depends on the seed and the step alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from voxtile_build.errors import SlimmingError, reason_of
from voxtile_build.hashing import bytes_sha256
from voxtile_build.slimming.pool.labeller import Kind
from voxtile_build.slimming.pool.pool import Pool
from voxtile_build.slimming.training.average import Average
from voxtile_build.slimming.training.checkpoint import NAME, Checkpoint, read_checkpoint, write_checkpoint
from voxtile_build.slimming.training.device import Device, best_device, denormals_flushed
from voxtile_build.slimming.training.health import Health
from voxtile_build.slimming.training.loss import distillation_loss
from voxtile_build.slimming.training.sampling import Sampling
from voxtile_build.slimming.training.schedule import Budget, rate_at, usual_rate
from voxtile_build.slimming.training.signals import Held

LARGEST_GRADIENT = 1.0
"""Norm to which gradients are clipped."""

CHECKPOINTS = 0.02
"""Share of the time that checkpoints may take: a large student is written less often."""

FEWEST_SECONDS, MOST_SECONDS = 5.0, 60.0
"""Between two checkpoints: what a run loses that is killed."""

STEPS_BETWEEN_SNAPSHOTS = 50
LOGGED = 200
"""Losses that a whole run keeps, each the mean since the one before."""


@dataclass(frozen=True)
class TrainingPlan:
    """How to train.

    Attributes:
        budget: how long.
        batch: patches a step.
        learning_rate: the highest; None: what suits the network.
        weight_decay: of AdamW.
        seed: of the order of patches and of dropout.
        flips: axes of the ROI along which patches may be mirrored.
    """

    budget: Budget
    batch: int = 2
    learning_rate: float | None = None
    weight_decay: float = 1e-4
    seed: int = 0
    flips: tuple[int, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: how many are done.
        loss: the mean over the last ones.
        seconds: over all restarts.
        seconds_left: about; None at first.
    """

    step: int
    loss: float
    seconds: float
    seconds_left: float | None


@dataclass(frozen=True)
class Trained:
    """What comes out.

    Attributes:
        state_dict: the student's weights, on the CPU.
        steps: that were taken.
        seconds: over all restarts.
        losses: (step, mean loss since the one before).
        device: and arithmetic, in words.
    """

    state_dict: Mapping[str, Tensor]
    steps: int
    seconds: float
    losses: tuple[tuple[int, float], ...]
    device: str


class TrainingStopped(SlimmingError):
    """A training could not go on.

    Attributes:
        trained: the last good weights, None where there are none.
        is_over: whether it would stop again if it went on, such as one that diverges.
    """

    def __init__(self, message: str, trained: Trained | None, *, is_over: bool = False) -> None:
        super().__init__(message)
        self.trained, self.is_over = trained, is_over


def train(
    network: nn.Module,
    pool: Pool,
    plan: TrainingPlan,
    folder: Path,
    *,
    kind: Kind,
    regions: bool,
    device: Device | None = None,
    told: Callable[[Progress], None] = lambda progress: None,
) -> Trained:
    """Train until the budget is spent; go on where a run with the same plan was cut off.

    Args:
        network: the student with its first weights; in evaluation mode, with the trained ones, afterwards.
        pool: with no patch missing.
        plan: how.
        folder: for checkpoints; made if absent.
        kind: what the pool's targets hold.
        regions: whether classes overlap.
        device: where; None: a GPU where there is one.
        told: called after each step.

    Raises:
        TrainingStopped: the loss is not finite or has diverged, the disk is full, or the network cannot be trained.
        SlimmingError: patches are missing, or the folder holds the checkpoint of another plan or network, or a damaged
            one.
    """
    if pool.missing:
        raise SlimmingError(
            f"{pool.folder}: expected all {pool.count} patches labelled, found {pool.count - len(pool.missing)}; label "
            "the others first"
        )
    chosen = device or best_device()
    with denormals_flushed(), chosen.random_numbers(), Held() as held:
        training = _Training(network, pool, plan, folder, kind, regions, chosen)
        while training.spent < 1 and held.number is None:
            training.take_step()
            told(training.progress)
            training.keep(now=False)
        training.keep(now=True)
    if held.number is not None:  # whoever the signal was for let the process go on
        raise KeyboardInterrupt
    return training.end()


class _Training:
    """A run."""

    def __init__(
        self,
        network: nn.Module,
        pool: Pool,
        plan: TrainingPlan,
        folder: Path,
        kind: Kind,
        regions: bool,
        device: Device,
    ) -> None:
        self._network, self._pool, self._plan, self._folder = network.to(device.name).train(), pool, plan, folder
        self._kind, self._regions, self._device = kind, regions, device
        self._rate = usual_rate(network) if plan.learning_rate is None else plan.learning_rate
        self._optimiser = torch.optim.AdamW(network.parameters(), lr=self._rate, weight_decay=plan.weight_decay)
        self._average, self._health = Average(network), Health()
        self._sampling = Sampling(pool.voxels, plan.seed, plan.flips)
        self._step, self._losses, self._since = 0, list[tuple[int, float]](), list[float]()
        self._good: Trained | None = None
        self._earlier, self._started = 0.0, time.monotonic()
        self._resume()
        self._kept, self._interval = time.monotonic(), FEWEST_SECONDS

    @property
    def _seconds(self) -> float:
        return self._earlier + time.monotonic() - self._started

    @property
    def spent(self) -> float:
        """The share of the budget that is spent."""
        return self._plan.budget.spent(self._step, self._seconds)

    @property
    def progress(self) -> Progress:
        """For whoever watches."""
        left = self._plan.budget.seconds_left(self._step, self._seconds)
        return Progress(self._step, self._health.loss, self._seconds, left)

    def take_step(self) -> None:
        """Show a batch, and change the weights unless something is not finite."""
        plan, spent = self._plan, self.spent
        torch.manual_seed(int(np.random.SeedSequence([plan.seed, self._step]).generate_state(1)[0]))
        images, targets = self._pool.batch(*self._sampling.batch(self._step, plan.batch))
        loss = self._loss(torch.from_numpy(images), torch.from_numpy(targets))
        value = float(loss.detach())
        if np.isfinite(value):
            for group in self._optimiser.param_groups:
                group["lr"] = rate_at(self._rate, spent)
            value = value if self._change(loss) else float("nan")
        self._step += 1
        self._note(value)

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        device = self._device
        try:
            with device.arithmetic():
                answer = one_output(self._network(images.to(device.name)), targets.ndim)
            return distillation_loss(answer, targets.to(device.name), self._kind, regions=self._regions)
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise self._refusal(error) from None

    def _change(self, loss: Tensor) -> bool:
        """Take the step that the loss asks for; False, and nothing changes, where a gradient is not finite."""
        self._optimiser.zero_grad(set_to_none=True)
        try:
            torch.autograd.backward(loss)
        except (RuntimeError, MemoryError) as error:
            raise self._refusal(error) from None
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), LARGEST_GRADIENT)
        if not torch.isfinite(norm):
            return False
        self._optimiser.step()
        self._average.take(self._step)
        return True

    def _refusal(self, error: BaseException) -> TrainingStopped:
        return TrainingStopped(
            f"step {self._step + 1}: the student cannot be trained with {self._plan.batch} patches of "
            f"{list(self._pool.layout.image)} a step: {reason_of(error)}; a smaller --batch needs less memory",
            self._good,
        )

    def _note(self, loss: float) -> None:
        self._health.saw(loss)
        if np.isfinite(loss):
            self._since.append(loss)
        if self._since and len(self._losses) < int(min(self.spent, 1.0) * LOGGED):
            self._losses.append((self._step, float(np.mean(self._since))))
            self._since.clear()
        if self._health.good and (self._good is None or self._step % STEPS_BETWEEN_SNAPSHOTS == 0):
            self._good = self._trained()
        if (trouble := self._health.trouble) is not None:
            kept = "nothing was learnt" if self._good is None else f"the weights after step {self._good.steps} are kept"
            raise TrainingStopped(
                f"step {self._step}: the training has to end: {trouble}; {kept}. try a lower --learning-rate (now "
                f"{self._rate:g})",
                self._good,
                is_over=True,
            )

    def _trained(self) -> Trained:
        return Trained(self._average.copy(), self._step, self._seconds, tuple(self._losses), self._device.words)

    def keep(self, *, now: bool) -> None:
        """Write a checkpoint if it is time, and if the weights are worth it."""
        started = time.monotonic()
        due = now or started - self._kept >= self._interval
        if not due or not self._health.good:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_checkpoint(self._folder, Checkpoint(self._tensors(), self._facts()))
        except OSError as error:
            raise TrainingStopped(
                f"{self._folder / NAME}: cannot be written ({error.strerror or error}); the one before it stays. "
                "Free some disk, and go on with --resume",
                self._trained(),
            ) from None
        self._kept = time.monotonic()
        self._interval = min(max((self._kept - started) / CHECKPOINTS, FEWEST_SECONDS), MOST_SECONDS)

    def end(self) -> Trained:
        """Give the network its trained weights, in evaluation mode."""
        trained = self._trained() if self._health.good or self._good is None else self._good
        self._network.load_state_dict(trained.state_dict)
        self._network.eval()
        return trained

    def _tensors(self) -> dict[str, Tensor]:
        moments = {
            f"optimiser.{index}.{name}": value
            for index, state in self._optimiser.state_dict()["state"].items()
            for name, value in state.items()
        }
        return {**_named("network", self._network.state_dict()), **_named("average", self._average.state), **moments}

    def _facts(self) -> dict[str, Any]:
        return {
            "run": self._identity(),
            "step": self._step,
            "seconds": self._seconds,
            "losses": self._losses,
            "since": self._since,
            "health": self._health.facts(),
        }

    def _identity(self) -> str:
        shapes = {name: list(value.shape) for name, value in self._network.state_dict().items()}
        rate = {"learning_rate": self._rate, "patches": self._pool.count, "kind": self._kind, "regions": self._regions}
        return bytes_sha256(repr(({**asdict(self._plan), **rate}, shapes)).encode())

    def _resume(self) -> None:
        checkpoint = read_checkpoint(self._folder)
        if checkpoint is None:
            return
        facts, tensors = checkpoint.facts, checkpoint.tensors
        if facts["run"] != self._identity():
            raise SlimmingError(
                f"{self._folder / NAME}: expected a checkpoint of this plan and student, found one of another; remove "
                "it, or give back what that run was given"
            )
        self._network.load_state_dict(_under("network", tensors))
        self._average.load(_under("average", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimiser", tensors).items():
            index, _, moment = name.partition(".")
            state.setdefault(int(index), {})[moment] = value
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": state})
        self._step, self._earlier = facts["step"], facts["seconds"]
        self._losses, self._since = [(step, loss) for step, loss in facts["losses"]], list(facts["since"])
        self._health = Health.of(facts["health"])
        self._good = self._trained()


def one_output(answer: Any, axes: int) -> Tensor:
    """The scores at full resolution [batch, class, *spatial] of a network in training mode.

    With deep supervision some networks give several then, the full resolution first: in a list, or along axis 1.
    """
    while isinstance(answer, Sequence) and not isinstance(answer, Tensor):
        answer = answer[0]
    if not isinstance(answer, Tensor):
        raise TypeError(f"expected a tensor of scores, found {type(answer).__name__}")
    return answer[:, 0] if answer.ndim == axes + 1 else answer


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
