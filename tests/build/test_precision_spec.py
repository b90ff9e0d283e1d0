"""[precision] is taken whole or refused with what each engine supports; calibration scans are read like any other."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.support.build_specs import fields, spec
from voxtile_build.engines import find_engine
from voxtile_build.errors import ScanError, SpecError
from voxtile_build.evaluation.calibration import MOST_TILES, calibrate
from voxtile_build.evaluation.tiles import cut_tiles
from voxtile_build.spec.engines import ENGINE_NAMES
from voxtile_build.spec.precision import Precision
from voxtile_build.spec.spec import Spec, load_spec, parse_spec

SUPPORTED = {
    "openvino": {"fp32", "bf16", "int8", "auto"},
    "onnxruntime": {"fp32", "fp16", "int8", "int8-dynamic", "auto"},
    "aotinductor": {"fp32", "bf16", "fp16", "auto"},
    "tensorrt": {"fp32", "tf32", "bf16", "fp16", "int8", "auto"},
}
ALL = sorted(set().union(*SUPPORTED.values()))


def refusal(**changes: Any) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(fields(**changes), "tiny.toml", Path())
    return str(caught.value)


def write_scan(path: Path, values: Any, zooms: tuple[float, float, float] = (1, 1, 1)) -> None:
    nib.save(nib.Nifti1Image(values, np.diag([*zooms, 1.0])), path)


def with_calibration(folder: Path, *names: str | list[str], **changes: Any) -> Spec:
    return parse_spec(fields(precision={"calibration": list(names)}, **changes), "tiny.toml", folder)


def scan_values(shape: tuple[int, int, int] = (20, 10, 14), seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def test_fp32_is_what_nobody_has_to_ask_for() -> None:
    assert [spec().precision.of(engine) for engine in ENGINE_NAMES] == ["fp32"] * len(ENGINE_NAMES)
    assert spec().precision.calibration == ()


@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.parametrize("wanted", [*ALL, "fp8", "BF16"])
def test_each_engine_takes_what_it_supports_and_names_it_otherwise(engine: str, wanted: str) -> None:
    if wanted in SUPPORTED[engine]:
        assert spec(precision={engine: wanted}).precision.of(engine) == wanted
        return
    message = refusal(precision={engine: wanted})
    assert message.startswith(f"tiny.toml: precision.{engine}: ")
    assert f"found '{wanted}'" in message
    for supported in SUPPORTED[engine]:
        assert f"'{supported}'" in message


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_what_a_spec_may_ask_for_can_be_built(engine: str) -> None:
    built = {variant.precision for variant in find_engine(engine).variants()}
    asked = set(typing.get_args(Precision.model_fields[engine].annotation))
    assert asked - {"auto"} == built


def test_an_unknown_engine_is_refused_with_the_nearest() -> None:
    assert "did you mean 'openvino'?" in refusal(precision={"openvno": "bf16"})


def test_calibration_scans_lie_beside_the_spec(tmp_path: Path) -> None:
    file = tmp_path / "model.toml"
    file.write_text(
        'name = "mini"\n[network]\nname = "Identity"\n[input]\nchannels = ["any"]\n[output]\nlabels = ["value"]\n'
        '[tiling]\nroi_size = [8, 8, 8]\n[precision]\nopenvino = "bf16"\ncalibration = ["a.nii.gz", ["b.nii.gz"]]\n'
    )
    found = load_spec(file).precision
    assert found.openvino == "bf16"
    assert found.calibration == ((tmp_path / "a.nii.gz",), (tmp_path / "b.nii.gz",))


def test_a_scan_has_a_file_for_each_channel() -> None:
    message = refusal(precision={"calibration": ["a.nii.gz"]}, input={"channels": ["T1", "T2"]})
    assert "expected precision.calibration with 2 files a scan, found 1" in message


def test_without_scans_the_phantom_is_used_and_said(tmp_path: Path) -> None:
    found = calibrate(spec())
    assert found.generated
    assert found.as_dict()["generated"] is True
    assert "phantom" in found.scans[0].name


def test_acceptance_scans_are_not_calibrated_on(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii", scan_values())
    chosen = parse_spec(fields(acceptance={"scans": ["a.nii"]}), "tiny.toml", tmp_path)
    assert calibrate(chosen).generated


def test_tiles_of_every_scan_are_used_up_to_a_limit(tmp_path: Path) -> None:
    names = [f"{index}.nii" for index in range(8)]
    for index, name in enumerate(names):
        write_scan(tmp_path / name, scan_values(seed=index))
    chosen = with_calibration(tmp_path, *names)
    found = calibrate(chosen)
    assert not found.generated
    assert len(found.tiles) == len(found.feeds) == MOST_TILES < 8 * 5
    assert [scan.name for scan in found.scans] == names
    for scan in found.scans:
        firsts = next(tile for tile in cut_tiles(scan, chosen) if tile.name == "first corner")
        assert any(np.array_equal(firsts.roi, tile.roi) for tile in found.tiles)
    middle = next(tile for tile in cut_tiles(found.scans[0], chosen) if tile.name == "middle")
    np.testing.assert_array_equal(found.example["roi"][0], middle.roi)


def test_feeds_are_the_graphs_inputs(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii", scan_values())
    chosen = with_calibration(tmp_path, "a.nii", input={"dtype": "int16", "intensity": {"rule": "zscore"}})
    for feed in calibrate(chosen).feeds:
        assert feed["roi"].shape == (1, *chosen.roi_shape)
        assert feed["roi"].dtype == np.int16
        assert feed["intensity"].shape == (1, 1, 2)
        assert feed["intensity"].dtype == np.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "no such file; precision.calibration must name NIfTI files"),
        (b"a table, not a scan", "expected a NIfTI scan"),
        (np.zeros((4, 4, 4, 3), np.int16), "expected a 3D scan of one channel"),
        (np.full((4, 4, 4), np.nan, np.float32), "found NaN or infinity"),
        (np.full((9, 9, 9), 7, np.int16), "channel 0 hold 7"),
        (np.full((4, 4, 4), 70_000, np.int32), "expected values that int16 holds"),
    ],
)
def test_a_calibration_scan_of_the_wrong_kind_is_refused_by_name(tmp_path: Path, values: Any, message: str) -> None:
    if isinstance(values, bytes):
        (tmp_path / "wrong.nii").write_bytes(values)
    elif values is not None:
        write_scan(tmp_path / "wrong.nii", values)
    write_scan(tmp_path / "right.nii", scan_values())
    with pytest.raises(ScanError, match=rf"wrong\.nii: .*{message}"):
        calibrate(with_calibration(tmp_path, "right.nii", "wrong.nii", input={"dtype": "int16"}))
