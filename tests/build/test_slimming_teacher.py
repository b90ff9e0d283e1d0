"""A teacher answers as its networks do in PyTorch, by a certified engine; what cannot teach is refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.support.build_specs import ROI, fields, tiny_unet
from tests.support.network_files import sha256, write_onnx
from tests.support.nnunet_folders import Training, configuration, network, write_folder
from voxtile_build.build import build
from voxtile_build.errors import AcceptanceError, BuildError, SlimmingError, SpecError
from voxtile_build.graph.wrapper import Wrapper
from voxtile_build.importers.network import load_network
from voxtile_build.slimming.given import certified
from voxtile_build.slimming.given.source import NnunetChoice, teacher_model
from voxtile_build.slimming.teacher import REPOSITORY, open_teacher
from voxtile_build.spec.input import PADDING
from voxtile_build.spec.spec import Spec, load_spec, parse_spec
from voxtile_build.spec.spec_to_toml import write_spec

CLOSE = 2e-4
"""Of logits of about ±1: engine and PyTorch sum in another order."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine is tried, which is enough where nothing is said of the choice among several."""
    monkeypatch.setattr(certified, "ON_CPU", ("openvino",))


def written(folder: Path, made: torch.nn.Module | None = None, **changes: Any) -> Path:
    """The small spec with `changes` and its weights, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file((made or tiny_unet()).state_dict(), folder / "tiny.safetensors")
    given = fields(
        **{"weights": {"file": "tiny.safetensors", "sha256": sha256(folder / "tiny.safetensors")}, **changes}
    )
    if "multiple" in given["tiling"]:
        del given["tiling"]["overlap"]  # whole slices
    write_spec(parse_spec(given, "tiny", folder), folder / "tiny.toml")
    return folder / "tiny.toml"


def patches(spec: Spec, count: int = 3, roi: Sequence[int] = ROI) -> tuple[Any, Any]:
    """Patches as a client sends them, one of them half outside the scan, and statistics that differ."""
    rng = np.random.default_rng(3)
    rois = rng.normal(100, 40, (count, len(spec.input.channels), *roi))
    rois[0, :, : roi[0] // 2] = PADDING[spec.input.dtype]
    kind = {"fp32": np.float32, "int16": np.int16}[spec.input.dtype]
    statistics = np.stack([[[90 + 5 * n, 30 + n]] * len(spec.input.channels) for n in range(count)])
    return rois.astype(kind), statistics.astype(np.float32)


def in_pytorch(
    networks: Sequence[torch.nn.Module], spec: Spec, rois: Any, statistics: Any, flips: Sequence[tuple[int, ...]]
) -> Any:
    """The mean of all networks and flips, one after the other."""
    answers = []
    for made in networks:
        wrapper = Wrapper(made.eval(), spec).eval()
        for axes in flips:
            over = tuple(2 + axis for axis in axes)
            given = [torch.from_numpy(np.flip(rois, over).copy())]
            given += [torch.from_numpy(statistics)] if spec.whole_scan_intensity else []
            with torch.inference_mode():
                answers.append(np.flip(wrapper.logits(wrapper.image(*given)).numpy(), over))
    return np.mean(answers, axis=0)


class Steps:
    """Notes the names of steps."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.names.append(name)
        yield

    @property
    def built(self) -> bool:
        return any(name.startswith("build ") for name in self.names)


def test_scores_are_the_logits_of_every_mirroring_whatever_the_spec_sends_back(tmp_path: Path) -> None:
    source = written(
        tmp_path,
        input={"dtype": "int16", "intensity": {"rule": "zscore", "mask": "nonzero"}},
        output={"scores": "labels", "dtype": "uint8"},
        tiling={"mirror_axes": [0, 2]},
        serving={"volume": True, "engines": ["onnxruntime"], "gpus": "all"},
        precision={"openvino": "int8", "onnxruntime": "auto"},
    )
    spec, steps = load_spec(source), Steps()
    rois, statistics = patches(spec)
    flips = [(), (0,), (2,), (0, 2)]
    expected = in_pytorch([load_network(spec)], spec, rois, statistics, flips)
    with open_teacher(source, folder=tmp_path / "work", step=steps) as teacher:
        assert (teacher.kind, teacher.precision, list(teacher.mirrorings)) == ("logits", "fp32", flips)
        assert teacher.spec == spec
        assert teacher.weights_sha256 == sha256(tmp_path / "tiny.safetensors")
        assert len(teacher.certificates) == len(teacher.networks) == 1
        found = teacher.scores(rois, statistics)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=CLOSE)
        assert np.abs(found - in_pytorch([load_network(spec)], spec, rois, statistics, [()])).max() > 10 * CLOSE
        np.testing.assert_array_equal(teacher.run({"roi": rois, "intensity": statistics}), found)
        seen = teacher.image(rois, statistics)
        assert (seen[0, :, : ROI[0] // 2] == 0).all()
        np.testing.assert_allclose(seen[1], (rois[1] - 95.0) / 31.0, rtol=1e-5)
        with pytest.raises(ValueError, match="int16"):
            teacher.scores(rois.astype(np.float32), statistics)
        assert steps.built
    assert not (tmp_path / "work" / REPOSITORY).exists()
    assert not list(tmp_path.glob("**/*_scan*"))


@pytest.mark.usefixtures("one_engine")
def test_what_an_interrupted_run_built_is_used_again_unless_it_is_damaged_or_another(tmp_path: Path) -> None:
    source, work = written(tmp_path / "one"), tmp_path / "work"
    killed = open_teacher(source, folder=work)
    killed.__exit__(KeyboardInterrupt)
    first = killed.certificates, killed.engine
    again = Steps()
    teacher = open_teacher(source, folder=work, step=again)
    assert not again.built
    assert (teacher.certificates, teacher.engine) == first
    # the same weights in a network of other arithmetic
    other = written(tmp_path / "two", network={"args": {**fields()["network"]["args"], "adn_ordering": "AN"}})
    steps = Steps()
    assert open_teacher(other, folder=work, step=steps).certificates != first[0]
    assert steps.built
    for file in (work / REPOSITORY).glob("*/1/model.*"):
        file.write_bytes(b"damaged")
    steps = Steps()
    rois, statistics = patches(load_spec(source))
    open_teacher(other, folder=work, step=steps).scores(rois, statistics)
    assert steps.built


def test_a_published_engine_of_the_same_weights_is_used_and_a_damaged_one_refused(tmp_path: Path) -> None:
    source, repository = written(tmp_path, name="published"), tmp_path / "repository"
    spec = load_spec(source)
    build(spec, repository, engines=["openvino"])
    before = sorted(path for path in repository.glob("**/*"))
    steps = Steps()
    with open_teacher(source, folder=tmp_path / "work", repository=repository, step=steps) as teacher:
        assert not steps.built
        assert teacher.engine == "openvino"
        rois, statistics = patches(spec)
        expected = in_pytorch([load_network(spec)], spec, rois, statistics, [()])
        np.testing.assert_allclose(teacher.scores(rois, statistics), expected, atol=CLOSE)
        rois[1, 0, 3, 3, 3] = np.inf
        with pytest.raises(SlimmingError, match="expected finite scores of the teacher"):
            teacher.scores(rois, statistics)
    assert sorted(path for path in repository.glob("**/*")) == before
    (repository / "published_openvino" / "1" / "model.bin").write_bytes(bytes(100))
    with pytest.raises(SlimmingError, match=r"published_openvino: expected a teacher .*model\.bin.*--repository"):
        open_teacher(source, folder=tmp_path / "work", repository=repository)
    assert not (tmp_path / "work" / REPOSITORY).exists()


def test_a_teacher_below_its_certificate_is_refused_with_the_engines_reason(tmp_path: Path) -> None:
    source = written(tmp_path, acceptance={"max_score_error": 1e-12, "max_abs_error": 1e-12})
    with pytest.raises(AcceptanceError, match=r"openvino.*max_abs_error: expected at most 1e-12"):
        open_teacher(source, folder=tmp_path / "work")
    assert not list((tmp_path / "work").glob("**/model.*"))


@pytest.mark.usefixtures("one_engine")
def test_all_folds_and_mirrorings_of_an_nnunet_folder_are_averaged(tmp_path: Path) -> None:
    patch = (16, 8, 8)
    training = Training("3d_fullres", {"3d_fullres": configuration(patch, (1, 1, 1))}, (0, 3), mirror_axes=(0, 1))
    folder = write_folder(tmp_path, training, seed=4)
    with open_teacher(folder, folder=tmp_path / "work") as teacher:
        assert teacher.spec.name == "dataset999_generated"
        assert (len(teacher.networks), len(teacher.certificates), len(teacher.mirrorings)) == (2, 2, 4)
        rois, statistics = patches(teacher.spec, roi=patch)
        networks = [network(training, seed) for seed in (4, 5)]
        for made in networks:
            made.get_submodule("decoder").deep_supervision = False  # type: ignore[assignment]
        expected = in_pytorch(networks, teacher.spec, rois, statistics, [(), (0,), (1,), (0, 1)])
        np.testing.assert_allclose(teacher.scores(rois, statistics), expected, atol=CLOSE)
        one = teacher.networks[1].load()
        assert all(torch.equal(value, networks[1].state_dict()[key]) for key, value in one.state_dict().items())
    one_fold = teacher_model(folder, NnunetChoice(folds=["3"]))
    assert [fold.name for fold in one_fold.folds] == ["dataset999_generated"]


def as_onnx(folder: Path) -> Path:
    file = write_onnx(tiny_unet(), folder / "net.onnx")
    given = fields(network={"file": str(file), "sha256": sha256(file)})
    given["network"] = {"file": "net.onnx", "sha256": sha256(file)}
    write_spec(parse_spec(given, "tiny", folder), folder / "spec.toml")
    return folder / "spec.toml"


def flat(folder: Path) -> Path:
    """A 2D network that goes through slices of any size, whose labels are regions."""
    from monai.networks.nets import UNet

    torch.manual_seed(2)
    args = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    return written(
        folder,
        UNet(**args),
        network={"args": args},
        output={"labels": ["tumour", "core"], "regions": True, "scores": "probabilities", "dtype": "uint8"},
        tiling={"roi_size": [16, 12], "slice_axis": 1, "multiple": 4},
        acceptance={"allow_unseen_labels": True},
    )


@pytest.mark.usefixtures("one_engine")
@pytest.mark.parametrize("make", [as_onnx, flat])
def test_every_sort_of_model_gives_logits(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = make(tmp_path)
    spec = load_spec(source)
    roi = (20, 8) if make is flat else ROI
    rois, statistics = patches(spec, roi=roi)
    expected = in_pytorch([load_network(spec)], spec, rois, statistics, [()])
    with open_teacher(source, folder=tmp_path / "work") as teacher:
        assert teacher.kind == "logits"
        np.testing.assert_allclose(teacher.scores(rois, statistics), expected, atol=CLOSE)


@pytest.mark.usefixtures("one_engine")
def test_a_network_that_ends_in_softmax_gives_probabilities(tmp_path: Path) -> None:
    file = write_onnx(torch.nn.Sequential(tiny_unet(), torch.nn.Softmax(1)), tmp_path / "net.onnx")
    given = fields(output={"scores": "foreground", "foreground": "one"})
    given["network"] = {"file": "net.onnx", "sha256": sha256(file), "output": "probabilities"}
    write_spec(parse_spec(given, "tiny", tmp_path), tmp_path / "spec.toml")
    with open_teacher(tmp_path / "spec.toml", folder=tmp_path / "work") as teacher:
        assert teacher.kind == "probabilities"
        found = teacher.scores(*patches(teacher.spec))
    assert found.shape[1] == 3
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def nothing(folder: Path) -> Path:
    return folder / "gone.toml"


def weights(folder: Path) -> Path:
    return written(folder).with_suffix(".safetensors")


def bundle(folder: Path) -> Path:
    (folder / "configs").mkdir()
    (folder / "models").mkdir()
    return folder


def model_set(folder: Path) -> Path:
    (folder / "set.toml").write_text('[[parts]]\nfolder = "a"\n[[parts]]\nfolder = "b"\n')
    return folder / "set.toml"


def unfinished(folder: Path) -> Path:
    return written(folder, todo=["choose the labels"])


def lonely(folder: Path) -> Path:
    return written(folder, output={"labels": ["x"]})


def cascade(folder: Path) -> Path:
    low = configuration((16, 16, 16), (2, 2, 2), next_stage="3d_cascade_fullres")
    high = configuration((16, 16, 16), (1, 1, 1), previous_stage="3d_lowres")
    both = {"3d_lowres": low, "3d_cascade_fullres": high}
    for name in both:
        trained = write_folder(folder, Training(name, both))
    return trained


REFUSED: list[tuple[Callable[[Path], Path], type[BuildError], str]] = [
    (nothing, SpecError, "cannot be read"),
    (weights, SlimmingError, "voxtile-build init"),
    (bundle, SlimmingError, "--write-spec"),
    (model_set, SlimmingError, "a set of 2 models; make a student of each"),
    (unfinished, SpecError, "choose the labels"),
    (lonely, SlimmingError, "at least two labels"),
    (cascade, SlimmingError, "second stage of a cascade"),
]


@pytest.mark.parametrize(("make", "kind", "said"), REFUSED)
def test_what_cannot_teach_is_refused_before_anything_is_built(
    tmp_path: Path, make: Callable[[Path], Path], kind: type[BuildError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        open_teacher(make(tmp_path), folder=tmp_path / "work")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "work").exists()


def test_choices_among_folds_are_for_nnunet_alone(tmp_path: Path) -> None:
    with pytest.raises(SlimmingError, match=r"--folds.*leave them out"):
        open_teacher(written(tmp_path), folder=tmp_path / "work", folds=["0"])


def test_the_first_stage_of_a_cascade_can_teach(tmp_path: Path) -> None:
    cascade(tmp_path)
    model = teacher_model(tmp_path, NnunetChoice(configuration="3d_lowres"))
    assert not (model.spec.nnunet or {}).get("previous_stage")
