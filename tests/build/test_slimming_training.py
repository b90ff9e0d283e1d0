"""Training of a student: what it learns, how it goes on after being killed, and how it ends when something is wrong."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import DynUNet, UNet
from torch import Tensor, nn

from tests.support.slimming_teachers import FunctionTeacher, by_brightness, by_side, head, model
from voxtile_build.errors import SlimmingError
from voxtile_build.slimming.pool import Pool
from voxtile_build.slimming.training import Budget, Device, Progress, TrainingPlan, TrainingStopped, train, training
from voxtile_build.slimming.training.checkpoint import BEFORE, NAME, read_checkpoint
from voxtile_build.slimming.training.health import BROKEN, LONG, Health
from voxtile_build.slimming.training.loss import distillation_loss
from voxtile_build.slimming.training.pace import patch_seconds
from voxtile_build.slimming.training.sampling import Sampling
from voxtile_build.slimming.training.schedule import RATE, RATE_OF_ATTENTION, WARM_UP, rate_at, usual_rate

CPU = Device("cpu", bf16=False)
STEPS = 8
ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """Ends a run where it is, as SIGKILL does: nothing of the training catches it."""


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def new_pool(folder: Path) -> Pool:
    made = Pool(folder, model(), 12, 0)
    made.label([lambda: head(model())], FunctionTeacher(model(), by_brightness))
    return made


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return new_pool(tmp_path_factory.mktemp("pool"))


def student(dropout: float = 0.0, norm: str = "batch") -> UNet:
    torch.manual_seed(3)
    return UNet(3, 1, 3, (4, 8), (2,), norm=norm, dropout=dropout)


def plan(steps: int = STEPS, **changes: Any) -> TrainingPlan:
    return TrainingPlan(Budget(steps=steps), **{"flips": (0, 2), **changes})


def fit(network: nn.Module, pool: Pool, folder: Path, given: TrainingPlan | None = None, **options: Any) -> Any:
    options = {"kind": "logits", "regions": False, "device": CPU, **options}
    return train(network, pool, given or plan(), folder, **options)


def kill_at(step: int) -> Callable[[Progress], None]:
    def told(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return told


def mean_loss(network: nn.Module, pool: Pool) -> float:
    images, targets = (torch.from_numpy(part) for part in pool.batch(range(pool.count), [()] * pool.count))
    with torch.inference_mode():
        return float(distillation_loss(network(images), targets, "logits", regions=False))


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# What is learnt


def test_a_student_comes_nearer_to_its_teacher(pool: Pool, tmp_path: Path) -> None:
    network = student()
    before = mean_loss(network.eval(), pool)
    told: list[Progress] = []
    trained = fit(network, pool, tmp_path, plan(30, learning_rate=2e-2), told=told.append)
    assert not network.training
    assert mean_loss(network, pool) < 0.5 * before
    assert same(trained.state_dict, network.state_dict())
    assert [one.step for one in told] == list(range(1, 31))
    assert trained.steps == 30
    assert trained.losses[-1][0] == 30
    assert trained.losses[-1][1] < trained.losses[0][1]
    assert told[-1].seconds_left == 0
    assert trained.device == "cpu, fp32"


def test_mirrored_patches_teach_the_mirrored_answer(tmp_path: Path) -> None:
    """A student that sees one voxel alone cannot know sides: mirrored along the sides' axis it is taught both."""
    sided = Pool(tmp_path / "pool", model(), 12, 0)
    sided.label([lambda: head(model())], FunctionTeacher(model(), by_side(0)))
    assert 0 not in sided.flips()
    images, targets = sided.batch(range(4), [()] * 4)
    mirrored = sided.batch(range(4), [(0,)] * 4)
    np.testing.assert_array_equal(mirrored[0], images[:, :, ::-1])
    np.testing.assert_array_equal(mirrored[1], targets[:, :, ::-1])


@pytest.mark.parametrize(
    "network",
    [
        DynUNet(3, 1, 3, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 4, 8], deep_supervision=True, deep_supr_num=1),
        nn.Sequential(nn.Conv3d(1, 3, 1)),
    ],
)
def test_networks_with_several_heads_are_trained_at_full_resolution(
    network: nn.Module, pool: Pool, tmp_path: Path
) -> None:
    fit(network, pool, tmp_path, plan(2))
    images = torch.from_numpy(pool.batch([0], [()])[0])
    assert network(images).shape == (1, 3, 16, 8, 12)


def test_the_first_of_a_list_of_heads_is_trained() -> None:
    full, half = torch.zeros(2, 3, 8, 8, 8), torch.zeros(2, 3, 4, 4, 4)
    assert training.one_output([full, half], 5) is full
    assert training.one_output([[full], half], 5) is full
    stacked = torch.stack([full, full + 1], dim=1)
    assert torch.equal(training.one_output(stacked, 5), full)


def test_weights_that_share_memory_are_kept_and_loaded(pool: Pool, tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv3d(1, 3, 1)
            self.other = self.one

        def forward(self, image: Tensor) -> Tensor:
            answer: Tensor = self.other(image)
            return answer

    trained = fit(Shared(), pool, tmp_path, plan(3))
    assert torch.equal(trained.state_dict["one.weight"], trained.state_dict["other.weight"])


# The same end, whatever happens on the way


@pytest.mark.parametrize("kills", [(1,), (5,), (2, 3, 4, 6, 7)])
def test_a_killed_training_ends_with_the_same_weights(
    pool: Pool, tmp_path: Path, kills: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with dropout and the running means of batch normalisation."""
    expected = fit(student(dropout=0.2), pool, tmp_path / "whole")
    monkeypatch.setattr(training, "FEWEST_SECONDS", 0.0)
    monkeypatch.setattr(training, "MOST_SECONDS", 0.0)
    for step in kills:
        with pytest.raises(Killed):
            fit(student(dropout=0.2), pool, tmp_path / "cut off", told=kill_at(step + 1))
        torch.rand(5)  # whatever else draws random numbers
        checkpoint = read_checkpoint(tmp_path / "cut off")
        assert checkpoint is not None
        assert checkpoint.facts["step"] == step
    found = fit(student(dropout=0.2), pool, tmp_path / "cut off")
    assert same(found.state_dict, expected.state_dict)
    assert found.losses == expected.losses
    assert found.steps == STEPS


def test_what_is_trained_already_is_not_trained_again(pool: Pool, tmp_path: Path) -> None:
    first = fit(student(), pool, tmp_path)
    steps: list[Progress] = []
    again = fit(student(), pool, tmp_path, told=steps.append)
    assert steps == []
    assert same(first.state_dict, again.state_dict)
    assert again.losses == first.losses


def test_seconds_count_over_restarts(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(training, "FEWEST_SECONDS", 0.0)
    monkeypatch.setattr(training, "MOST_SECONDS", 0.0)
    given = TrainingPlan(Budget(seconds=60.0))
    steps: list[Progress] = []

    def told(progress: Progress) -> None:
        steps.append(progress)
        clock[0] += 9
        if len(steps) == 4:
            raise Killed

    with pytest.raises(Killed):
        fit(student(), pool, tmp_path, given, told=told)
    clock[0] += 5000
    trained = fit(student(), pool, tmp_path, given, told=told)
    assert len(steps) == 4 + 4, "27 seconds were kept, and another 33 are left: four more steps"
    assert trained.seconds == pytest.approx(27 + 36)
    assert steps[-1].seconds == pytest.approx(54)
    assert steps[-1].seconds_left == pytest.approx(6)


def test_the_callers_random_numbers_go_on(pool: Pool, tmp_path: Path) -> None:
    network = student()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    fit(network, pool, tmp_path, plan(2))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("other", ["seed", "batch", "flips", "learning_rate", "budget", "network"])
def test_the_checkpoint_of_another_run_is_refused_and_stays(pool: Pool, tmp_path: Path, other: str) -> None:
    fit(student(), pool, tmp_path, plan(2))
    before = (tmp_path / NAME).read_bytes()
    changes: dict[str, Any] = {"seed": 9, "batch": 3, "flips": (1,), "learning_rate": 1e-4}
    given = plan(3) if other == "budget" else plan(2, **{key: changes[key] for key in (other,) if key in changes})
    network = UNet(3, 1, 3, (4, 4), (2,), norm="batch") if other == "network" else student()
    with pytest.raises(SlimmingError, match=r"expected a checkpoint of this plan and student"):
        fit(network, pool, tmp_path, given)
    assert (tmp_path / NAME).read_bytes() == before


@pytest.mark.parametrize("damage", ["cut short", "one bit", "empty"])
def test_a_damaged_checkpoint_costs_what_came_after_the_one_before(
    pool: Pool, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "FEWEST_SECONDS", 0.0)
    monkeypatch.setattr(training, "MOST_SECONDS", 0.0)
    expected = fit(student(), pool, tmp_path)
    path = tmp_path / NAME
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 2] ^= 1
    path.write_bytes({"cut short": stored[:-9], "one bit": stored, "empty": b""}[damage])
    assert same(fit(student(), pool, tmp_path).state_dict, expected.state_dict)
    for name in (NAME, BEFORE):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(SlimmingError, match=r"expected a whole checkpoint, found a damaged file.* remove it"):
        fit(student(), pool, tmp_path)


SIGNALLED = """
import signal, sys
from pathlib import Path
from tests.build.test_slimming_training import fit, new_pool, student

class Asked(BaseException):
    pass

def handler(*_):
    raise Asked

def told(progress):
    if progress.step == 3:
        signal.raise_signal(number)

number, folder = int(sys.argv[1]), Path(sys.argv[2])
signal.signal(number, handler)
pool = new_pool(folder / "pool")
try:
    fit(student(), pool, folder / "training", told=told)
except Asked:
    print("asked, handled by", "the same" if signal.getsignal(number) is handler else "another")
"""
"""For a process of its own, as a command has: pytest's may have heard its last signal, if other tests have left it with
more than one core of OpenVINO (see `voxtile_build.engines.openvino.core`)."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_the_step_and_the_checkpoint(pool: Pool, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "asked, handled by the same\n"), done.stderr
    checkpoint = read_checkpoint(tmp_path / "training")
    assert checkpoint is not None
    assert checkpoint.facts["step"] == 3
    again, whole = (fit(student(), pool, tmp_path / name).state_dict for name in ("training", "other"))
    assert same(again, whole)


def test_a_terminated_process_leaves_a_checkpoint(pool: Pool, tmp_path: Path) -> None:
    """With nobody to handle SIGTERM, the process dies of it, a step later."""
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            told = lambda progress: progress.step == 2 and os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
            fit(student(), pool, tmp_path, told=told)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.facts["step"] == 2


# When something is wrong


class Broken(nn.Module):
    """A student whose answer is NaN from one call on, for some calls."""

    def __init__(self, first: int, calls: int) -> None:
        super().__init__()
        self.network, self.calls, self.broken = student(), 0, range(first, first + calls)

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        answer: Tensor = self.network(image)
        return answer * math.nan if self.calls in self.broken else answer


def test_losses_that_are_no_numbers_end_the_training_with_good_weights(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingStopped, match=rf"step {4 + BROKEN}: .*{BROKEN} losses in a row are not finite"
    ) as found:
        fit(Broken(5, 10**6), pool, tmp_path, plan(40))
    trained = found.value.trained
    assert trained is not None
    assert all(bool(value.isfinite().all()) for value in trained.state_dict.values())
    assert "\n" not in str(found.value)


def test_a_training_that_never_had_a_loss_says_so(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="nothing was learnt") as found:
        fit(Broken(1, 10**6), pool, tmp_path, plan(40))
    assert found.value.trained is None
    assert not (tmp_path / NAME).exists()


def test_a_single_loss_that_is_no_number_changes_nothing(pool: Pool, tmp_path: Path) -> None:
    trained = fit(Broken(4, BROKEN - 1), pool, tmp_path, plan(12))
    assert trained.steps == 12
    assert all(bool(value.isfinite().all()) for value in trained.state_dict.values())


def test_a_gradient_that_is_no_number_leaves_the_weights_alone(pool: Pool, tmp_path: Path) -> None:
    class Steep(nn.Conv3d):
        def forward(self, image: Tensor) -> Tensor:
            answer = super().forward(image)
            answer.register_hook(lambda gradient: gradient * math.inf)
            return answer

    network = Steep(1, 3, 1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(TrainingStopped, match="not finite"):
        fit(network, pool, tmp_path, plan(40))
    assert same(network.state_dict(), before)


def test_a_disk_that_is_full_ends_the_training_with_its_weights(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "FEWEST_SECONDS", 0.0)
    monkeypatch.setattr(training, "MOST_SECONDS", 0.0)

    def told(progress: Progress) -> None:
        if progress.step == 4:
            (tmp_path / f".{NAME}.partial").symlink_to("/dev/full")

    with pytest.raises(TrainingStopped, match=r"cannot be written \(No space left on device\); .* --resume") as found:
        fit(student(), pool, tmp_path, told=told)
    assert found.value.trained is not None
    assert found.value.trained.steps == 4
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.facts["step"] == 3
    assert same(fit(student(), pool, tmp_path).state_dict, fit(student(), pool, tmp_path / "other").state_dict)


def test_a_pool_with_patches_missing_is_refused(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(SlimmingError, match=r"expected all 9 patches labelled, found 0"):
        fit(student(), Pool(tmp_path / "pool", model(), 9, 0), tmp_path)


def test_a_student_that_does_not_take_the_patches_is_refused_in_one_line(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match=r"the student cannot be trained .*a smaller --batch") as found:
        fit(UNet(3, 2, 3, (4, 8), (2,)), pool, tmp_path)
    assert "\n" not in str(found.value)
    with pytest.raises(TrainingStopped, match="cannot be trained"):
        fit(nn.Conv3d(1, 2, 1), pool, tmp_path)


def test_a_training_that_is_far_off_for_long_has_diverged() -> None:
    health = Health()
    for loss in np.linspace(1.5, 0.2, 300):
        health.saw(float(loss))
        assert health.trouble is None
    for _ in range(20):
        health.saw(4.0)  # a bad batch or two
    assert health.trouble is None
    for _ in range(300):
        health.saw(0.2)
    assert health.good
    seen = 0
    while health.trouble is None:
        health.saw(2.0)
        seen += 1
    assert LONG < seen < 2 * LONG
    assert not health.good
    assert "diverged" in health.trouble


def test_easy_patches_at_the_beginning_are_no_measure() -> None:
    health = Health()
    for loss in (*[0.001] * 3, *[0.9] * (2 * LONG)):
        health.saw(loss)
        assert health.trouble is None
        assert health.good


def test_what_is_known_of_the_losses_is_kept() -> None:
    health = Health()
    for loss in (1.0, math.nan, *[0.7] * 100):
        assert Health.of(health.facts()) == health
        health.saw(loss)
    assert Health.of(health.facts()) == health


# Budget, rate, order


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [rate_at(1.0, spent) for spent in np.linspace(0, 1, 201)]
    top = int(np.argmax(rates))
    assert top / 200 == pytest.approx(WARM_UP, abs=0.01)
    assert 0 < rates[0] < 0.05
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert rate_at(1.0, 1.5) == 0


def test_attention_gets_a_lower_rate() -> None:
    assert usual_rate(student()) == RATE
    assert usual_rate(nn.Sequential(nn.LayerNorm(4))) == RATE_OF_ATTENTION


@pytest.mark.parametrize(
    "given", [{}, {"steps": 0}, {"seconds": -1.0}, {"seconds": math.nan}, {"steps": 5, "seconds": 0.0}]
)
def test_a_budget_of_nothing_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SlimmingError, match="give --steps or --hours"):
        Budget(**given)


def test_whichever_is_spent_first_ends_the_training() -> None:
    assert Budget(10, 100.0).spent(5, 80.0) == 0.8
    assert Budget(10, 100.0).spent(10, 80.0) == 1
    assert Budget(10).seconds_left(5, 3.0) == pytest.approx(3.0)
    assert Budget(10).seconds_left(0, 0.1) is None


def test_every_patch_is_shown_and_rare_labels_often() -> None:
    voxels = np.zeros((50, 3), int)
    voxels[:, 0] = 1000
    voxels[:25, 1] = 10
    voxels[7, 2] = 1  # a label in a single patch
    sampling = Sampling(voxels, 1, (0, 1))
    shown, flips = zip(*(sampling.batch(step, 2) for step in range(150)), strict=True)
    patches = np.concatenate(shown)
    in_turn, balanced = patches[0::2], patches[1::2]
    for turn in range(3):
        assert sorted(in_turn[50 * turn : 50 * (turn + 1)]) == list(range(50))
    assert in_turn[:50].tolist() != in_turn[50:100].tolist()
    assert 0.2 < (balanced == 7).mean() < 0.5
    assert 0.4 < (balanced < 25).mean() < 0.9
    counts = [sum(flip == one for step in flips for flip in step) for one in ((), (0,), (1,), (0, 1))]
    assert sum(counts) == 300
    assert min(counts) > 40


def test_the_order_does_not_depend_on_how_it_is_cut_into_steps() -> None:
    sampling = Sampling(np.ones((7, 2)), 1, ())
    by_two = [patch for step in range(12) for patch in sampling.batch(step, 2)[0]]
    assert by_two == [patch for step in range(8) for patch in sampling.batch(step, 3)[0]]
    assert by_two != [patch for step in range(12) for patch in Sampling(np.ones((7, 2)), 2, ()).batch(step, 2)[0]]


def test_what_a_patch_takes_is_timed_and_nothing_is_changed() -> None:
    network = student(dropout=0.5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    numbers, mode = torch.random.get_rng_state(), network.training
    assert (patch_seconds(network, (1, 8, 8, 8), 2, CPU) or 0) > 0
    assert same(network.state_dict(), before)
    assert network.training == mode
    assert all(value.grad is None for value in network.parameters())
    assert torch.equal(torch.random.get_rng_state(), numbers)
    # What is not even a network for such patches is left for the training to refuse.
    assert patch_seconds(network, (2, 8, 8, 8), 2, CPU) is None


@pytest.mark.parametrize(("size", "stride"), [(1, 2), (2, 1), (2, 2), (3, 1)])
def test_in_bf16_no_gradient_holds_what_another_left_in_memory(size: int, stride: int) -> None:
    # Maps as at the bottom of a U-Net; the bug of PyTorch that this is about shows where the CPU has bf16.
    torch.manual_seed(0)
    layer = nn.Conv3d(48, 48, 3, stride=stride, padding=1)

    def gradient(device: Device, maps: Tensor) -> Tensor:
        layer.zero_grad()
        with device.arithmetic():
            answer = layer(maps)
        torch.autograd.backward(answer.float().square().sum())
        assert layer.weight.grad is not None
        return layer.weight.grad.clone()

    for _ in range(8):
        maps = torch.randn(2, 48, size, size, size)
        expected = gradient(CPU, maps)
        left = [torch.full((count,), math.nan) for count in (3_000_000, 700_000, 100_000, 20_000, 5_000)]
        del left
        found = gradient(Device("cpu", bf16=True), maps)
        assert float((found - expected).abs().max()) <= 0.02 * float(expected.abs().max())


def test_larger_maps_are_in_bf16_and_smaller_ones_in_fp32() -> None:
    layer = nn.Conv3d(2, 2, 3, padding=1)
    with Device("cpu", bf16=True).arithmetic():
        assert layer(torch.zeros(1, 2, 3, 4, 5)).dtype == torch.bfloat16
        assert layer(torch.zeros(1, 2, 4, 4, 2)).dtype == torch.float32
    with CPU.arithmetic():
        assert layer(torch.zeros(1, 2, 4, 4, 4)).dtype == torch.float32
