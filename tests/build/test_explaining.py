"""What `explain` says beforehand is what the client's report says afterwards, for a scan of the same size."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.build_specs import FIELDS, spec, tiny_unet
from tests.support.in_memory import InMemoryTransport
from tests.support.network_files import write_traced
from tests.support.phantoms import affine_of, saved
from tests.support.waiting import in_time
from voxtile import Segmenter
from voxtile.card import Provenance
from voxtile.outputs.report import Report
from voxtile_build.build import build
from voxtile_build.cli.commands import main
from voxtile_build.engines.gpu import visible_gpu
from voxtile_build.errors import BuildError, WeightsError
from voxtile_build.explaining.explanation import Explanation, explain_spec
from voxtile_build.explaining.words import as_text
from voxtile_build.graph.wrapper import wrap
from voxtile_build.importers.network import untrained_network
from voxtile_build.networks.weights import sha256_of_file
from voxtile_build.repository.card import card_of
from voxtile_build.spec.network import Network, Weights
from voxtile_build.spec.spec import Spec
from voxtile_build.spec.spec_to_toml import write_spec

SHAPE, SPACING = (23, 30, 17), (1.5, 1.0, 2.0)
PLAIN: dict[str, Any] = {}
RESAMPLED = {"input": {"orientation": "LPS", "spacing": [2.0, 1.0, 1.0], "intensity": {"rule": "zscore"}}}
CASES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "resampled": RESAMPLED,
    "mirrored": {**RESAMPLED, "tiling": {"overlap": 0.5, "mirror_axes": [0, 2]}},
    "chain": {
        "preprocessing": [
            {"transform": "Orientation", "axcodes": "PIR"},
            {"transform": "Spacing", "pixdim": [1.0, 2.0, 1.5]},
            {"transform": "ScaleIntensityRange", "a_min": 0.0, "a_max": 10.0, "b_min": 0.0, "b_max": 1.0},
        ],
    },
    "crop in the client": {
        "preprocessing": [
            {"transform": "CropForeground", "select_fn": "x > 40", "margin": 1},
            {"transform": "Orientation", "axcodes": "PIR"},
            {"transform": "Spacing", "pixdim": [1.0, 2.0, 1.5]},
            {"transform": "ScaleIntensity"},
            {"transform": "DivisiblePad", "k": 4},
        ],
    },
    "int16 of 300 labels": {
        "input": {"dtype": "int16"},
        "output": {"labels": ["background", "one", {"name": "two", "value": 300}]},
    },
    "flat": {
        "network": {"args": {**FIELDS["network"]["args"], "spatial_dims": 2}},
        "tiling": {"roi_size": [16, 8], "slice_axis": 1, "overlap": 0.25},
    },
}


def followed(one: Spec, shape: tuple[int, int, int] = SHAPE, files: tuple[Path, ...] = ()) -> Explanation:
    return explain_spec(one, files, shape, SPACING)


def report_of(one: Spec, scan: Path) -> tuple[Report, np.dtype[Any]]:
    """The client's report of a segmentation by any network, and the type of the mask."""

    def network(tiles: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(tiles[:, :1].astype(np.float32), len(one.output.labels), axis=1)

    card = card_of(one, one.serving.engines[0], {}, Provenance(network="any", weights_sha256="", onnx_sha256=""))
    with Segmenter(transport=InMemoryTransport(card, network, one.serving.max_batch_size)) as segmenter:
        result = segmenter.run(segmenter.load(scan))
    return result.report, result.labels.dtype


def scan_file(folder: Path) -> Path:
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    path: Path = saved(folder / "scan.nii.gz", values, affine_of(SHAPE, SPACING))
    return path


@pytest.mark.parametrize("changes", CASES.values(), ids=list(CASES))
def test_what_is_said_beforehand_is_what_the_report_says_afterwards(changes: dict[str, Any], tmp_path: Path) -> None:
    one, scan = spec(**changes), scan_file(tmp_path)
    report, dtype = report_of(one, scan)
    # What a crop leaves depends on the values, which a made-up scan has not.
    found_before = () if "CropForeground" in str(changes) else (followed(one),)
    for found in (*found_before, followed(one, files=(scan,))):
        tiles = found.tiles
        assert found.shape == report.shape
        assert found.prepared == report.grid
        assert (tiles.count, tiles.batch, tiles.in_flight) == (report.tiles, report.batch, report.in_flight)
        assert tiles.strips == report.strips
        assert tiles.count * tiles.flips * tiles.sent == report.bytes_sent - statistics_bytes(one, found)
        assert tiles.count * tiles.flips * tiles.received == report.bytes_received
        assert found.memory["in all"] == report.predicted_peak_bytes
        assert found.mask == str(dtype)
        assert found.labels == {label.name: label.value for label in one.output.labels}
        assert [step.shape for step in found.preparing if step.shape][-1:] in ([], [report.grid])


def statistics_bytes(one: Spec, found: Explanation) -> int:
    """The statistics of the scan, two numbers of float32 a tile, travel beside the tiles."""
    return 8 * found.tiles.count * found.tiles.flips if one.whole_scan_intensity else 0


def test_every_step_has_its_sentence_place_and_shape_in_order() -> None:
    found = followed(spec(**RESAMPLED))
    assert [(step.where, step.what.partition(":")[0], step.shape) for step in found.preparing] == [
        ("client", "Orientation", (23, 30, 17)),
        ("client", "Spacing", (18, 30, 33)),
        ("client", "statistics of the whole scan for zscore, which travel with every tile", ()),
        ("graph", "zscore", ()),
    ]
    text = as_text(found)
    assert 'Orientation: Exchanges and flips axes; the mask is turned back (axcodes = "LPS") → 23 × 30 × 17' in text
    assert "pixdim = [2.0, 1.0, 1.0]" in text
    assert "a made-up scan" in text


def test_steps_that_move_voxels_have_the_shape_after_them(tmp_path: Path) -> None:
    found = followed(spec(**CASES["crop in the client"]), files=(scan_file(tmp_path),))
    shapes = {step.what.partition(":")[0]: step.shape for step in found.preparing}
    crop, turned, spaced, padded = (
        shapes[name] for name in ("CropForeground", "Orientation", "Spacing", "DivisiblePad")
    )
    assert crop == (25, 32, 19)  # only 41 values lie below, in a corner, and the margin goes beyond the scan
    assert turned == (32, 19, 25)
    assert padded == tuple(-(-size // 4) * 4 for size in spaced)
    assert shapes["ScaleIntensity"] == ()


def test_steps_after_the_network_are_those_of_the_chain() -> None:
    steps = [
        {"transform": "Activations", "softmax": True},
        {"transform": "Invert", "nearest_interp": False},
        {"transform": "AsDiscrete", "argmax": True},
    ]
    found = followed(spec(postprocessing=steps))
    names = [step.what.partition(":")[0] for step in found.finishing]
    assert names == [
        "tiles are blended (gaussian) into scores on the model's grid",
        "Activations",
        "Invert",
        "AsDiscrete",
    ]
    assert found.finishing[2].shape == SHAPE


def test_the_command_needs_no_weights_and_says_what_is_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, weights = tmp_path / "tiny.toml", {"file": "none.pt", "sha256": "0" * 64}
    write_spec(spec(weights=weights, todo=["input.channels: name them"]), file)
    assert main(["explain", str(file), "--shape", "23x30x17", "--spacing", "1.5X1X2"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("to do: input.channels: name them\ntiny: what happens to a made-up scan")
    assert main(["explain", str(file), str(scan_file(tmp_path)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scan"].endswith("scan.nii.gz")
    assert found["prepared"] == list(SHAPE)
    assert not (tmp_path / "none.pt").exists()


EVIL = "x\x1b]0;evil\x07\x1b[2J\nnot checked: nothing\x9b2J"


def test_names_in_a_spec_tell_a_terminal_nothing_and_make_no_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for number, name in enumerate(("plain", EVIL)):
        labels, file = ["background", name, *FIELDS["output"]["labels"][2:]], tmp_path / f"{number}.toml"
        write_spec(spec(output={**FIELDS["output"], "labels": labels}, todo=[name]), file)
        assert main(["explain", str(file), "--shape", "23x30x17", "--spacing", "1x1x2"]) == 0
        lines.append(capsys.readouterr().out.splitlines())
        assert all(line.isprintable() for line in lines[-1])
    assert len(lines[0]) == len(lines[1])
    (tmp_path / "broken.toml").write_text(f"[network]\nname = {json.dumps(EVIL)}\n")
    assert main(["explain", str(tmp_path / "broken.toml")]) == 2
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())


def test_a_pipe_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with in_time():
        assert main(["explain", str(tmp_path / "pipe")]) == 2
        assert "expected a plain file, found a pipe" in capsys.readouterr().err
        with pytest.raises(WeightsError, match="expected a plain file"):
            sha256_of_file(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--shape", "5x5"], "--shape: expected three numbers above 0"),
        (["--shape", "5x5x0"], "--shape: expected three numbers above 0"),
        (["--shape", "5x5x1.5"], "--shape: expected whole numbers"),
        (["--shape", "99999x9x9"], "--shape: expected three numbers"),
        (["--spacing", "1xnanx1"], "--spacing: expected three numbers above 0"),
        (["--shape", "9000x9000x9000", "--spacing", "1x1x1.7"], "voxels"),
        (["none.nii.gz"], "none.nii.gz"),
    ],
)
def test_wrong_scans_are_one_clear_line(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_spec(spec(input={"spacing": [1.0, 1.0, 1.0]}), tmp_path / "tiny.toml")
    assert main(["explain", str(tmp_path / "tiny.toml"), *arguments]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


# What a build refuses, `explain` refuses, in the same words

TRUNK = FIELDS["network"]["args"]
NESTED = {"features": [2] * 6, "out_channels": 3, "norm": "batch"}
WRONG: dict[str, dict[str, Any]] = {
    "roi of five levels": {
        "network": {"args": {**TRUNK, "channels": [2, 2, 2, 2, 2], "strides": [2, 2, 2, 2], "norm": "batch"}},
        "tiling": {"roi_size": [60, 32, 32]},
    },
    "roi of a transformer": {
        "network": {"name": "SwinUNETR", "args": {"in_channels": 1, "out_channels": 3, "feature_size": 12}},
        "tiling": {"roi_size": [32, 40, 32]},
    },
    "roi of 2D": {
        "network": {"args": {**TRUNK, "spatial_dims": 2}},
        "tiling": {"roi_size": [17, 16], "slice_axis": 2},
    },
    "2D network, 3D roi": {"network": {"args": {**TRUNK, "spatial_dims": 2}}},
    "labels": {"output": {"labels": ["background", "one"]}},
    "channels": {"input": {"channels": ["T1", "T2"]}},
    "name": {"network": {"name": "unett"}},
    "activation": {"network": {"args": {**TRUNK, "act": "RELUU"}}},
    "argument": {"network": {"args": {**TRUNK, "num_res_unit": 2}}},
    "probabilities": {"network": {"output": "probabilities"}},
    "head": {
        "network": {"name": "BasicUNetPlusPlus", "args": NESTED, "head": 4},
        "tiling": {"roi_size": [16, 16, 16]},
    },
    "no head": {
        "network": {"name": "BasicUNetPlusPlus", "args": {**NESTED, "deep_supervision": True}},
        "tiling": {"roi_size": [16, 16, 16]},
    },
    "type of input": {"input": {"dtype": "fp16"}, "serving": {"engines": ["aotinductor"]}, "output": {"labels": ["a"]}},
    "regions in no order": {"output": {"labels": ["one", "two", "three"], "regions": True}},
    "free sizes": {
        "network": {"name": "UNETR", "args": {"in_channels": 1, "out_channels": 3, "img_size": [32, 32]}},
        "tiling": {"roi_size": [32, 32], "slice_axis": 2, "multiple": 16, "overlap": 0.0},
    },
    "multiple of no stride": {
        "network": {"args": {**TRUNK, "spatial_dims": 2, "channels": [2, 2, 2], "strides": [2, 2], "norm": "batch"}},
        "tiling": {"roi_size": [32, 32], "slice_axis": 2, "multiple": 2, "overlap": 0.0},
    },
}


def with_weights(one: Spec, folder: Path) -> Spec:
    """The spec with weights that fit its network, where there is such a network."""
    try:
        network = untrained_network(one)
    except BuildError:
        network = tiny_unet()
    torch.save(network.state_dict(), folder / "w.pt")
    weights = {"file": folder / "w.pt", "sha256": sha256_of_file(folder / "w.pt")}
    return one.model_copy(update={"weights": Weights(**weights)})


@pytest.mark.parametrize("changes", WRONG.values(), ids=list(WRONG))
def test_explain_refuses_what_a_build_refuses_in_the_same_words(changes: dict[str, Any], tmp_path: Path) -> None:
    one = with_weights(spec(**changes), tmp_path)
    with pytest.raises(BuildError) as by_build:
        build(one, tmp_path / "models")
    with pytest.raises(BuildError) as by_explain:
        followed(one)
    assert str(by_explain.value) == str(by_build.value)
    assert type(by_explain.value) is type(by_build.value)
    assert "\n" not in str(by_explain.value)
    if changes.get("network", {}).get("output") != "probabilities":  # whose values follow from the weights
        with pytest.raises(BuildError) as unfetched:
            followed(one.model_copy(update={"weights": None}))
        assert str(unfetched.value) == str(by_build.value), "weights are not needed to see this"


def test_weights_that_are_there_are_checked_too(tmp_path: Path) -> None:
    one = with_weights(spec(), tmp_path)
    assert followed(one).unchecked == ()
    assert one.weights is not None
    other = one.model_copy(update={"network": one.network.model_copy(update={"args": {**TRUNK, "channels": [4, 6]}})})
    with pytest.raises(BuildError, match="the weights do not fit the network"):
        followed(other)
    digest = one.model_copy(update={"weights": one.weights.model_copy(update={"sha256": "0" * 64})})
    with pytest.raises(BuildError, match="expected sha256 0000"):
        followed(digest)


def test_a_network_in_a_file_is_run_where_it_is_there(tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    write_traced(tiny_unet(), file)
    network = {"file": file, "sha256": sha256_of_file(file, "network")}
    one = spec().model_copy(update={"network": Network(**network)})
    assert followed(one).unchecked == ()
    tiling = one.tiling.model_copy(update={"roi_size": (16, 9, 12)})
    with pytest.raises(BuildError, match=r"inferer.roi_size: expected scores on the grid of the ROI \[16, 9, 12\]"):
        followed(one.model_copy(update={"tiling": tiling}))
    gone = one.model_copy(update={"network": Network(**{**network, "file": tmp_path / "none.pt"})})
    assert "network.file" in as_text(followed(gone)).splitlines()[-1]


def test_what_cannot_be_checked_here_is_said(tmp_path: Path) -> None:
    one = spec(serving={"engines": ["onnxruntime", "tensorrt"]}, acceptance={"scans": [str(tmp_path / "none.nii.gz")]})
    said = followed(one).unchecked
    assert [line.partition(":")[0] for line in said][:2] == ["weights", "acceptance.scans"]
    assert "none.nii.gz" in said[1]
    assert len(said) == (2 if visible_gpu() else 3)
    assert all(f"not checked: {line}" in as_text(followed(one)) for line in said)


# A refused ROI names sizes that will do

SIZED: list[tuple[str, dict[str, Any], list[int], int]] = [
    ("UNet", {**TRUNK, "channels": [2] * 5, "strides": [2] * 4, "norm": "batch"}, [60, 33, 32], 16),
    ("UNet", {**TRUNK, "channels": [2] * 3, "strides": [3, 2], "norm": "batch"}, [18, 20, 12], 6),
    ("SegResNet", {"in_channels": 1, "out_channels": 3, "init_filters": 8}, [24, 20, 24], 8),
    ("AttentionUnet", {**TRUNK, "channels": [2] * 3, "strides": [2, 2]}, [16, 18, 16], 4),
    ("SwinUNETR", {"in_channels": 1, "out_channels": 3, "feature_size": 12}, [32, 40, 32], 32),
]


@pytest.mark.parametrize(("name", "args", "roi", "step"), SIZED, ids=[one[0] + str(one[3]) for one in SIZED])
def test_sizes_that_are_offered_for_a_refused_roi_are_taken(
    name: str, args: dict[str, Any], roi: list[int], step: int
) -> None:
    one = spec(network={"name": name, "args": args}, tiling={"roi_size": roi})
    with pytest.raises(BuildError, match=f"inferer.roi_size: .*multiples of {step}, such as ") as refused:
        wrap(untrained_network(one), one)
    offered = json.loads(str(refused.value).rpartition("such as ")[2])
    assert all(size % step == 0 and 0 <= size - given < step for size, given in zip(offered, roi, strict=True))
    wrap(
        untrained_network(one),
        one.model_copy(update={"tiling": one.tiling.model_copy(update={"roi_size": tuple(offered)})}),
    )
