"""2D networks with free height and width: whole slices of any size through the server, equal to PyTorch's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from tests.support.cards import card as card_fields
from voxtile import RemoteNetwork, Segmenter
from voxtile.card import Card, Tiling, parse_card
from voxtile.errors import InputError, ModelError
from voxtile.tiling.plan import plan_tiles, tile_shape
from voxtile.triton.connection import ConnectionConfig
from voxtile_build.build import build
from voxtile_build.certificate.fold_mean import mean_graph
from voxtile_build.certificate.verify import verify
from voxtile_build.engines import find_engine
from voxtile_build.engines.openvino.core import core as the_core
from voxtile_build.errors import NetworkError, SpecError
from voxtile_build.evaluation.samples import gather_scans, phantom_scan
from voxtile_build.evaluation.tiles import cut_tiles, tile_inputs
from voxtile_build.evaluation.whole_scan import torch_runner
from voxtile_build.graph.composing import to_onnx
from voxtile_build.graph.torch_to_onnx import save
from voxtile_build.graph.wrapper import wrap
from voxtile_build.importers.network import load_network
from voxtile_build.networks import make_network
from voxtile_build.networks.free_sizes import require_free_sizes
from voxtile_build.repository.config import PLACEHOLDER, public_config, read_config, write_config
from voxtile_build.spec.network import Network
from voxtile_build.spec.spec import Spec, parse_spec
from voxtile_server.backends.openvino.variants import Variants
from voxtile_server.embedded import EmbeddedServer

LABELS = ["background", "one", "two"]
ENGINES = ("onnxruntime", "openvino")
MULTIPLE = 8
UNET = {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 1}  # instance norm
SEGRESNET = {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}  # group norm
# In-plane sizes and slices: odd ones, one smaller than the multiple, one that fits, one long and thin.
SCANS = ((37, 50, 3), (5, 7, 4), (48, 32, 5), (9, 101, 2))

MOST_FLIPPED = 1e-5
MOST_ERROR = 1e-3
BF16_ERROR = 0.05
"""Of the logits' range: 8 bits of mantissa, through a dozen layers; a mark that is missed costs ten times as much."""


def spec_of(name: str, folder: Path, network: str, args: dict[str, Any], **changes: Any) -> Spec:
    """The spec of a 2D network with free sizes and random weights, always the same ones."""
    args = {"spatial_dims": 2, "in_channels": 1, "out_channels": len(LABELS), **args}
    torch.manual_seed(7)
    weights = folder / f"{name}.safetensors"
    save_file({key: value.clone() for key, value in make_network(network, args, 1, 3).state_dict().items()}, weights)
    fields: dict[str, Any] = {
        "name": name,
        "network": {"name": network, "args": args},
        "weights": {"file": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()},
        "input": {"channels": ["T1"], "intensity": {"rule": "zscore"}},
        "output": {"labels": LABELS},
        "tiling": {"roi_size": [32, 24], "slice_axis": 2, "multiple": MULTIPLE},
        "serving": {"max_batch_size": 3, "threads": 1},
    }
    for key, value in changes.items():
        fields[key] = {**fields[key], **value}
    return parse_spec(fields, f"{name}.toml", folder)


def tiny_card(**changes: Any) -> Card:
    return parse_card(json.dumps(card_fields(**changes)), "m")


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Spec]:
    folder = tmp_path_factory.mktemp("specs")
    other = {"tiling": {"slice_axis": 0}, "input": {"dtype": "int16"}}
    return {
        "unet": spec_of("unet", folder, "UNet", UNET),
        "segresnet": spec_of("segresnet", folder, "SegResNet", SEGRESNET, **other),
    }


@pytest.fixture(scope="module")
def repository(specs: dict[str, Spec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each model with both engines, and a public name for each: NAME-onnxruntime and NAME-openvino."""
    target = tmp_path_factory.mktemp("free") / "models"
    for name, spec in specs.items():
        card = build(spec, target).card
        for engine in ENGINES:
            public = f"{name}-{engine}"
            config = public_config(spec, card.model_copy(update={"name": public, "engine": engine}), [name])
            config.name = public
            (target / public / "1").mkdir(parents=True)
            (target / public / "1" / "README").write_text(PLACEHOLDER)
            write_config(config, target / public)
    return target


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repository) as running:
        yield running
        running.kill()


def scan(shape: tuple[int, ...], slice_axis: int) -> NDArray[np.int16]:
    """An asymmetric scan of whole numbers; `shape` has its slices last."""
    grid = np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij")
    values = 300 * np.sin(5 * grid[0] + 2 * grid[1] ** 2) + 200 * grid[1] + 100 * grid[2]
    values += np.random.default_rng(sum(shape)).normal(0, 40, shape)
    return np.moveaxis(np.rint(values).astype(np.int16), 2, slice_axis)


def by_pytorch(network: nn.Module, volume: NDArray[Any], slice_axis: int) -> NDArray[np.float32]:
    """Probabilities [label, *volume]: every slice padded with 0 up to the multiple, the odd pixel behind."""
    normal = (volume.astype(np.float32) - np.float32(volume.mean())) / np.float32(volume.std())
    found = []
    for plane in np.moveaxis(normal, slice_axis, 0):
        lack = [-size % MULTIPLE for size in plane.shape]
        padded = np.pad(plane, [(side // 2, side - side // 2) for side in lack])
        with torch.inference_mode():
            likely = network(torch.from_numpy(padded)[None, None]).softmax(dim=1)[0].numpy()
        found.append(likely[:, lack[0] // 2 :, lack[1] // 2 :][:, : plane.shape[0], : plane.shape[1]])
    return np.stack(found, axis=slice_axis + 1)


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    return torch.from_numpy(np.ascontiguousarray(logits)).softmax(dim=0).numpy()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["unet", "segresnet"])
def test_scans_of_any_size_get_pytorchs_mask(
    server: EmbeddedServer, specs: dict[str, Spec], name: str, engine: str
) -> None:
    spec, network = specs[name], load_network(specs[name])
    axis = spec.tiling.slice_axis
    assert axis is not None
    with Segmenter(server.grpc_url, f"{name}-{engine}", keep_scores=True) as segmenter:
        assert (segmenter.card.multiple, segmenter.card.engine) == (MULTIPLE, engine)
        for shape in SCANS:
            volume = scan(shape, axis)
            done = segmenter.segment(nib.Nifti1Image(volume, np.diag([1.0, 1.2, 3.0, 1.0])))
            expected = by_pytorch(network, volume, axis)
            assert done.report.tiles == volume.shape[axis]
            assert done.labels.shape == volume.shape
            assert np.mean(done.labels != expected.argmax(axis=0)) <= MOST_FLIPPED
            assert np.abs(softmax(done.scores) - expected).max() <= MOST_ERROR
            assert len(np.unique(done.labels)) > 1


@pytest.mark.parametrize("shared_memory", [True, False])
def test_a_remote_network_takes_slices_that_the_multiple_divides(
    server: EmbeddedServer, specs: dict[str, Spec], shared_memory: bool
) -> None:
    network = wrap(load_network(specs["unet"]), specs["unet"])
    with RemoteNetwork(server.grpc_url, "unet", connection=ConnectionConfig(shared_memory=shared_memory)) as remote:
        for size in ((16, 40), (64, 8), (16, 40)):
            x = torch.from_numpy(np.random.default_rng(size[0]).normal(0, 1, (4, 1, *size)).astype(np.float32))
            plain = torch.tensor([0.0, 1.0]).expand(len(x), 1, 2)
            with torch.inference_mode():
                expected = network(x, plain)
            np.testing.assert_allclose(remote(x).numpy(), expected.numpy(), atol=1e-3)
        assert remote(np.empty((0, 1, 24, 8), np.float32)).shape == (0, 3, 24, 8)


@pytest.mark.parametrize("shape", [(1, 1, 16, 20), (1, 1, 0, 8), (1, 2, 16, 16), (1, 1, 16), (1, 1, 16, 16, 16)])
def test_a_remote_network_refuses_other_slices_and_says_what_to_do(
    server: EmbeddedServer, shape: tuple[int, ...]
) -> None:
    with RemoteNetwork(server.grpc_url, "unet") as remote:
        message = rf"takes \[batch, 1, height, width\], found .*pad height and width to multiples of {MULTIPLE}"
        with pytest.raises(InputError, match=message):
            remote(np.zeros(shape, np.float32))


def test_a_scan_through_monais_own_window_is_the_same(server: EmbeddedServer, specs: dict[str, Spec]) -> None:
    x = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (2, 1, 40, 48)).astype(np.float32))
    network = load_network(specs["unet"])
    with RemoteNetwork(server.grpc_url, "unet") as remote, torch.inference_mode():
        found, expected = (sliding_window_inference(x, (24, 32), 2, one, overlap=0.5) for one in (remote, network))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-3)


@pytest.mark.parametrize("change", [{"overlap": 0.5}, {"mode": "gaussian"}])
def test_whole_slices_cannot_be_made_to_overlap(server: EmbeddedServer, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"takes whole slices, which do not overlap; leave out {next(iter(change))}"):
        Segmenter(server.grpc_url, "unet", **change)


# What is built


def shape_of(value: Any) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_graph_and_config_have_free_sizes_and_the_card_says_so(repository: Path) -> None:
    graph = onnx.load(repository / "unet_onnxruntime" / "1" / "model.onnx").graph
    (roi, _), (scores,) = graph.input, graph.output
    assert shape_of(roi) == ["batch", 1, "8*height", "8*width"]
    assert shape_of(scores) == ["batch", 3, "8*height", "8*width"]
    for entry in ("unet", "unet_onnxruntime", "unet_openvino"):
        config = read_config(repository / entry)
        assert list(config.input[0].dims) == [1, -1, -1]
        assert list(config.output[0].dims) == [3, -1, -1]
    assert read_config(repository / "unet_openvino").parameters["STATIC_VARIANTS"].string_value == "0"
    warm = read_config(repository / "unet_onnxruntime").model_warmup
    assert {tuple(sample.inputs["roi"].dims) for sample in warm} == {(1, 32, 24)}
    card = parse_card(read_config(repository / "unet").parameters["card"].string_value, "unet")
    assert (card.multiple, card.roi_size, card.tiling.overlap, card.tiling.mode) == (
        MULTIPLE,
        (32, 24),
        0.0,
        "constant",
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_certificate_measures_several_sizes(repository: Path, engine: str) -> None:
    content = json.loads((repository / f"unet_{engine}" / "1" / "certificate.json").read_text())
    assert content["accepted"]
    others = {"whole slice, 48 × 32", "smallest, 8 × 8", "a step larger, 40 × 32"}
    for batch in (1, 2, 3):
        names = {tile["name"] for tile in content["tiles"] if tile["batch"] == batch}
        assert others & names if batch == 2 else others <= names
        assert "first corner" in names
    assert content["scans"][0]["shape"] == [1, 41, 27, 5]


def test_the_certificate_holds_through_the_server(repository: Path, server: EmbeddedServer) -> None:
    for url in (server.grpc_url, None):
        verdicts = verify("segresnet", repository, url)
        assert len(verdicts) == len(ENGINES) + (url is not None)
        assert all(verdict.holds for verdict in verdicts), [verdict.as_line() for verdict in verdicts]


def test_samples_have_tiles_of_several_sizes_from_the_middle_of_the_slice(specs: dict[str, Spec]) -> None:
    spec = specs["unet"]
    (found,) = gather_scans(spec)
    tiles = {tile.name: tile.roi for tile in cut_tiles(found, spec)}
    plane = found.volume[:, :, :, found.volume.shape[3] // 2]
    np.testing.assert_array_equal(tiles["smallest, 8 × 8"], plane[:, 17:25, 10:18])
    whole = tiles["whole slice, 48 × 32"]
    np.testing.assert_array_equal(whole[:, 3:44, 2:29], plane)
    assert (whole[:, :3] == whole.min()).all()
    assert (whole[:, :, 29:] == whole.min()).all()


def test_folds_of_any_size_are_averaged(specs: dict[str, Spec]) -> None:
    session = ort.InferenceSession(mean_graph(specs["unet"], 2).SerializeToString())
    for size in ((8, 8), (16, 40)):
        one, two = np.random.default_rng(1).normal(size=(2, 2, 3, *size)).astype(np.float32)
        (found,) = session.run(None, {"scores_0": one, "scores_1": two})
        np.testing.assert_allclose(found, (one + two) / 2, rtol=1e-6)


def test_openvino_keeps_one_variant_whatever_sizes_come(repository: Path) -> None:
    config = read_config(repository / "unet_openvino")
    core = the_core()
    model = core.read_model(repository / "unet_openvino" / "1" / "model.xml")
    variants = Variants(core, model, {key: v.string_value for key, v in config.parameters.items()})
    figures = np.tile(np.float32([0, 1]), (2, 1, 1))
    for size in ((8, 8), (16, 24), (40, 8), (24, 24), (64, 32), (8, 8)):
        x = np.random.default_rng(size[0]).normal(size=(2, 1, *size)).astype(np.float32)
        assert variants.run({"roi": x, "intensity": figures}, ["scores"])["scores"].shape == (2, 3, *size)
    assert variants.compiled == [None]


@pytest.mark.parametrize(("dtype", "multiple"), [("fp32", MULTIPLE), ("fp16", None)])
def test_bf16_with_free_shapes_knows_what_is_outside_the_scan(tmp_path: Path, dtype: str, multiple: int | None) -> None:
    """OpenVINO rounds even the tile to bf16 where a graph's shapes are free; the padding mark must survive that."""
    tiling = {"multiple": multiple, "overlap": 0.0, "mode": "constant"}
    spec = spec_of("unet", tmp_path, "UNet", UNET, input={"dtype": dtype}, tiling=tiling)
    wrapper = wrap(load_network(spec), spec)
    (file,) = save(to_onnx(wrapper, spec), tmp_path / "model.onnx")
    compiled = the_core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    tile = next(tile for tile in cut_tiles(phantom_scan(spec), spec) if tile.name == "half outside")
    given = tile_inputs(spec, tile.roi[None], tile.statistics[None])
    expected = torch_runner(wrapper)(given)
    assert np.abs(compiled(given)["scores"] - expected).max() < BF16_ERROR * np.ptp(expected)


# What is refused


@pytest.mark.parametrize(
    ("tiling", "message"),
    [
        ({"roi_size": [32, 20]}, r"expected roi_size in multiples of 8 .multiple., found \[32, 20\]"),
        ({"roi_size": [32, 24, 16], "slice_axis": None}, r"multiple is for 2D networks.*UNet .*is tiled: leave it out"),
        ({"overlap": 0.5}, "slices are sent whole and nothing overlaps; leave out overlap"),
        ({"mode": "gaussian", "sigma_scale": 0.2}, "leave out mode, sigma_scale"),
        ({"semantics": "nnunet"}, "nnU-Net tiles with a fixed patch"),
        ({"multiple": 0}, "tiling.multiple: "),
    ],
)  # fmt: skip
def test_a_spec_that_asks_for_what_cannot_be_is_refused(tmp_path: Path, tiling: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_of("unet", tmp_path, "UNet", UNET, tiling=tiling)


def test_what_is_left_out_may_also_be_said(tmp_path: Path) -> None:
    said = spec_of("unet", tmp_path, "UNet", UNET, tiling={"overlap": 0.0, "mode": "constant"})
    assert said.tiling == spec_of("unet", tmp_path, "UNet", UNET).tiling
    assert Spec.model_validate_json(said.model_dump_json()) == said


@pytest.mark.parametrize("network", ["SwinUNETR", "UNETR"])
def test_networks_of_one_size_are_refused_by_name_before_they_are_loaded(
    specs: dict[str, Spec], tmp_path: Path, network: str
) -> None:
    chosen = specs["unet"].model_copy(update={"network": Network(name=network)})
    message = f"{network} is built for one size"
    with pytest.raises(SpecError, match=message):
        build(chosen, tmp_path / "models")
    assert not [path for path in (tmp_path / "models").glob("*") if path.is_dir()]


def test_a_network_by_file_and_a_tensorrt_plan_are_refused(specs: dict[str, Spec]) -> None:
    by_file = Network(file=Path("net.onnx"), sha256="0" * 64)
    with pytest.raises(SpecError, match=r"net.onnx is a graph traced at one size; give the network by name"):
        require_free_sizes(specs["unet"].model_copy(update={"network": by_file}))
    with pytest.raises(SpecError, match="a TensorRT plan is built for shapes that are known; take tensorrt out"):
        find_engine("tensorrt").require_buildable(specs["unet"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        # Instance norm over one voxel is not defined; PyTorch refuses it.
        ({"channels": [4, 8, 8, 8], "strides": [2, 2, 2]}, r"refuses a ROI of \[8, 8\]: .*; multiple = 16 leaves out"),
        ({"channels": [4, 4, 8, 8, 8], "strides": [2] * 4, "norm": "batch"}, r"inferer.roi_size: .* ROI of \[32, 24\]"),
    ],
)  # fmt: skip
def test_a_multiple_that_the_strides_do_not_divide_is_refused(
    tmp_path: Path, args: dict[str, Any], message: str
) -> None:
    chosen = spec_of("unet", tmp_path, "UNet", args)
    with pytest.raises(NetworkError, match=message):
        wrap(load_network(chosen), chosen)


def test_a_card_with_free_sizes_takes_what_the_multiple_divides() -> None:
    plain = tiny_card(roi_size=[32, 32], slice_axis=0)
    assert [plain.takes(size) for size in ((32, 32), (32, 40))] == [True, False]
    free = tiny_card(roi_size=[32, 32], slice_axis=0, multiple=16)
    assert free.takes((16, 80))
    assert not any(free.takes(size) for size in ((16, 24), (16, 16, 16), (0, 16)))
    with pytest.raises(ModelError, match="multiple is only for a 2D roi_size"):
        tiny_card(multiple=16)


@pytest.mark.parametrize(("axis", "shape"), [(0, (7, 16, 48)), (1, (16, 33, 16)), (2, (16, 48, 5))])
def test_a_tile_is_a_whole_slice_padded_up_to_the_multiple(axis: int, shape: tuple[int, int, int]) -> None:
    card = tiny_card(roi_size=[32, 32], slice_axis=axis, multiple=16)
    image = tuple(size if index == axis else size - 1 for index, size in enumerate(shape))
    plan = plan_tiles(image, tile_shape(card, image), Tiling(overlap=0.0, mode="constant"))
    assert plan.padded == shape
    assert [tile.start[axis] for tile in plan] == list(range(shape[axis]))
    assert {tile.shape for tile in plan} == {tuple(1 if index == axis else n for index, n in enumerate(shape))}
    assert plan.before == (0, 0, 0)  # the odd voxel of padding lies behind, as MONAI has it
