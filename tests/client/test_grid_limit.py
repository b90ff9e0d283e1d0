"""A header cannot make the client allocate what no scan needs: refused by its size, with spacing and grid, before."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.in_memory import InMemoryTransport
from tests.support.nnunet_plans import plan_json
from tests.support.odd_headers import AFFINE, VOXELS, content, written
from tests.support.phantoms import card_of
from voxtile import Segmenter
from voxtile.budget import RUNTIME_BYTES
from voxtile.chains.grid_limit import GridLimit, check_unit
from voxtile.chains.monai.preprocess import preprocess as monai_preprocess
from voxtile.chains.nnunet.plan import NnunetPlan
from voxtile.chains.nnunet.preprocessing import preprocess as nnunet_preprocess
from voxtile.chains.nnunet.preprocessing import preprocess_bytes
from voxtile.chains.prepare import prepare_scan, reader_of
from voxtile.errors import InputError, MemoryLimitError
from voxtile.io.geometry import NIBABEL, REORIENTING, SIMPLEITK
from voxtile.io.scan import open_scan
from voxtile.io.volume import Volume
from voxtile.machine.memory import machine_bytes

MIB = 1 << 20
SLACK = 6 * MIB
"""What reading and preparing take beyond their large arrays: pieces that values are converted in, matrices."""


def volume(shape: tuple[int, int, int], spacing: tuple[float, float, float], unit: float = 1.0) -> Volume:
    data = np.ones((1, *shape), np.int16)
    return Volume(data, np.diag([*spacing, 1.0]), None, ("scan.nii",), None, unit)


@pytest.fixture(autouse=True)
def peak() -> Iterator[Any]:
    """A function that gives the most bytes allocated so far."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


CARD = card_of(spacing=(1.0, 1.0, 1.0))
PLAN = NnunetPlan.parse(plan_json())


@pytest.mark.parametrize("spacing", [(400.0, 400.0, 400.0), (900.0, 1.0, 1000.0)])
def test_a_grid_of_terabytes_is_refused_by_both_chains_before_it_is_made(
    spacing: tuple[float, float, float], peak: Any
) -> None:
    one = volume((30, 260, 200), spacing)
    with pytest.raises(MemoryLimitError, match=r"scan.nii: a spacing of .* mm makes .* voxels .*this machine has"):
        monai_preprocess(one, CARD)
    with pytest.raises(MemoryLimitError, match=r"a spacing of .* mm makes .* voxels .*this machine has"):
        nnunet_preprocess(one.data.transpose(0, 3, 2, 1), spacing[::-1], PLAN)
    assert peak() < one.nbytes + 3 * one.data.size + SLACK  # nnU-Net's mask of what is not zero


@pytest.mark.parametrize(("shape", "spacing"), [((30, 26, 1), (1.0, 1.0, 0.3)), ((20, 20, 20), (1e-3, 1e-3, 1e-3))])
def test_a_grid_without_voxels_is_refused_by_nnunets_chain(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    data = volume(shape, spacing).data.transpose(0, 3, 2, 1)
    with pytest.raises(InputError, match=r"scan: a spacing of .* mm makes 0 × .* voxels for this model of "):
        nnunet_preprocess(data, spacing[::-1], PLAN, limit=GridLimit("scan"))


def test_a_scan_that_would_be_one_voxel_is_refused_by_monais_chain() -> None:
    with pytest.raises(InputError, match=r"scan.nii: a spacing of 0.002 .* makes 1 × 1 × 1 voxels"):
        monai_preprocess(volume((40, 30, 20), (0.002, 0.002, 0.002)), CARD)
    assert monai_preprocess(volume((3, 4, 2), (0.1, 0.1, 0.1)), CARD).data.size == 1  # a few voxels may be


@pytest.mark.parametrize("unit", [1000.0, 0.001])
def test_a_unit_that_explains_the_spacing_is_named(unit: float) -> None:
    honest = volume((40, 30, 20), (1.2 / unit, 1.0 / unit, 0.9 / unit), unit)
    with pytest.raises(
        InputError, match=r"expected a header in millimetres, found (metres|micrometres) \(xyzt_units\)"
    ):
        check_unit(honest, honest.spacing, (1.0, 1.0, 1.0))
    check_unit(honest, honest.spacing, (1 / unit, 1 / unit, 1 / unit))  # a model trained on such files
    check_unit(volume((40, 30, 20), (1.0, 1.0, 1.0), unit), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))  # the unit is wrong


def test_a_unit_is_named_with_both_spacings() -> None:
    one = volume((4, 3, 2), (1.2e-3, 1e-3, 0.9e-3), 1000.0)
    told = (
        "scan.nii: expected a header in millimetres, found metres (xyzt_units), which this model's reader takes for "
        "millimetres: voxels of 0.0012 × 0.001 × 0.0009 mm, where the model's have 1 × 2 × 3; write the header in "
        "millimetres"
    )
    with pytest.raises(InputError) as caught:
        check_unit(one, one.spacing, (1.0, 2.0, 3.0))
    assert str(caught.value) == told


def test_a_unit_counts_where_the_scan_fits_better_with_it() -> None:
    """Voxels of 0.04 mm to the reader, 40 mm by the unit: nearer to 0.2 as they are, nearer to 8 by the unit."""
    one = volume((4, 3, 2), (0.04, 0.04, 0.04), 1000.0)
    check_unit(one, one.spacing, (0.2, 0.2, 0.2))
    check_unit(one, one.spacing, (0.04, 4.0, 0.04))  # on the whole
    with pytest.raises(InputError):
        check_unit(one, one.spacing, (8.0, 8.0, 8.0))


@pytest.mark.parametrize(
    ("shape", "grid", "refused"),
    [((4, 4, 4), (1, 1, 1), True), ((3, 3, 7), (1, 1, 1), False), ((4, 4, 4), (1, 2, 1), False),
     ((9, 9, 9), (9, 0, 9), True), ((1, 1, 1), (-1, 1, 1), True)],
)  # fmt: skip
def test_a_grid_has_more_than_a_voxel_where_the_scan_has_many(
    shape: tuple[int, ...], grid: tuple[int, ...], refused: bool
) -> None:
    limit = GridLimit("scan")
    if not refused:
        limit.check(shape, (1.0, 1.0, 1.0), grid, 1)
        return
    with pytest.raises(InputError, match="too few to segment"):
        limit.check(shape, (1.0, 1.0, 1.0), grid, 1)


def test_a_grid_may_take_what_is_allowed_and_else_is_told_with_its_size() -> None:
    grid, gib = ((4, 3, 2), (0.5, 1.0, 2.0), (2, 3, 4)), 1 << 30
    GridLimit("scan", 3 * gib).check(*grid, 3 * gib)
    makes = "scan: a spacing of 0.5 × 1 × 2 mm makes 2 × 3 × 4 voxels for this model"
    with pytest.raises(MemoryLimitError) as allowed:
        GridLimit("scan", 3 * gib).check(*grid, 4 * gib)
    what = "3.00 GiB are left of what is allowed; is the spacing in the header right?"
    assert str(allowed.value) == f"{makes}, which need 4.00 GiB, and {what}"
    with pytest.raises(MemoryLimitError, match=rf"and this machine has {machine_bytes() / gib:.2f} GiB;"):
        GridLimit("scan").check(*grid, machine_bytes() + 1)
    GridLimit("scan").check(*grid, machine_bytes() // 2)
    with pytest.raises(InputError) as few:
        GridLimit("scan").check((4, 3, 2), (0.5, 1.0, 2.0), (0, 3, 4), 1)
    odd = "of 4 × 3 × 2: too few to segment; is the spacing in the header right?"
    assert str(few.value) == f"{makes.replace('2 × 3 × 4', '0 × 3 × 4')} {odd}"


def test_metres_never_end_in_an_empty_mask(tmp_path: Path) -> None:
    path = written(tmp_path / "scan.nii", VOXELS, np.diag([1e-3, 1e-3, 1e-3, 1.0]) @ AFFINE, units=1)
    with pytest.raises(InputError, match="xyzt_units"):
        monai_preprocess(open_scan(path, ["any"]), CARD)
    kept = monai_preprocess(open_scan(path, ["any"]), card_of())  # nothing is resampled
    np.testing.assert_array_equal(kept.data[0], VOXELS)


@pytest.mark.parametrize("reader", [SIMPLEITK, NIBABEL, REORIENTING])
def test_a_nnunet_model_takes_metres_as_its_reader_does_or_refuses_them(tmp_path: Path, reader: str) -> None:
    path = written(tmp_path / "scan.nii", VOXELS, np.diag([1e-3, 1e-3, 1e-3, 1.0]) @ AFFINE, units=1)
    card = card_of(orientation=None, nnunet=plan_json(n_labels=2, spacing=(1.0, 1.0, 1.0), image_reader_writer=reader))
    scan = open_scan(path, ["any"], reader_of(card))
    if reader == SIMPLEITK:
        assert prepare_scan(scan, card).data.shape[1:] == (14, 12, 9)
        return
    with pytest.raises(InputError, match=r"expected a header in millimetres, found metres \(xyzt_units\)"):
        prepare_scan(scan, card)


@pytest.mark.parametrize(("reader", "grid"), [(NIBABEL, (28, 20, 9)), (REORIENTING, (7, 8, 9)), ("", (28, 20, 9))])
def test_a_segmenter_reads_as_the_models_reader(tmp_path: Path, reader: str, grid: tuple[int, int, int]) -> None:
    path = written(tmp_path / "scan.nii", srow=np.diag([-1.0, -1, 1, 1])[:3], pixdim=[1, 1, 2.5, 4])
    plan = plan_json(n_labels=2, spacing=(1.0, 1.0, 1.0), image_reader_writer=reader)
    card = card_of(orientation=None, nnunet=plan, tiling={"semantics": "nnunet"})
    with Segmenter(transport=InMemoryTransport(card, two_scores)) as segmenter:
        result = segmenter.segment(path)
    assert result.report.grid == grid
    assert any("pixdim says 1 × 2.5 × 4" in warning for warning in result.report.warnings)
    assert not any("scan.nii" in warning for warning in result.report.warnings)


# Reading ---------------------------------------------------------------------------------------------------


def test_a_series_is_refused_by_its_header_alone(tmp_path: Path) -> None:
    """The rest of the stream is missing, so that whoever reads on says something else."""
    series = content(np.stack([VOXELS] * 3, -1))
    path = tmp_path / "series.nii.gz"
    path.write_bytes(gzip.compress(series)[:-100])
    for scan in (path, path.read_bytes(), nib.load(path)):
        with pytest.raises(InputError, match="found 4D without a channel meaning"):
            open_scan(scan, ["T1"])


def test_a_channel_of_another_grid_is_refused_by_its_header_alone(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a.nii"), tmp_path / "b.nii.gz"
    other.write_bytes(gzip.compress(content(VOXELS[:, :5]))[:-50])
    with pytest.raises(InputError, match=r"expected the grid of .*a.nii"):
        open_scan([one, other], ["a", "b"])


@pytest.mark.parametrize(
    ("dtype", "scl", "channels"),
    [("i2", (1.0, 0.0), 1), ("i2", (2.5, 1.0), 1), ("f8", (1.0, 0.0), 1), ("f4", (1.0, 0.0), 3), ("i4", (2.0, 0.0), 2),
     ("u1", (0.5, 0.0), 3)],
)  # fmt: skip
def test_reading_keeps_to_its_limit_and_the_limit_is_near(
    tmp_path: Path, dtype: str, scl: tuple[float, float], channels: int, peak: Any
) -> None:
    values = np.random.default_rng(0).integers(0, 200, (128, 128, 128)).astype(dtype)
    files = [written(tmp_path / f"{n}.nii", values, scl=scl) for n in range(channels)]
    names = [str(n) for n in range(channels)]
    least = _least(lambda limit: open_scan(files, names, max_bytes=limit))
    tracemalloc.reset_peak()
    base = tracemalloc.get_traced_memory()[0]
    open_scan(files, names, max_bytes=least)
    taken = peak() - base
    assert taken <= least + SLACK
    assert least <= 2 * taken + SLACK  # whole numbers may turn out to fit a smaller type


def _least(run: Any) -> int:
    """The least limit that `run` keeps to, found by what its errors say."""
    low, high = 0, 1 << 30
    while high - low > MIB // 4:
        middle = (low + high) // 2
        try:
            run(middle)
            high = middle
        except MemoryLimitError:
            low = middle
    return high


def test_a_limit_is_told_with_the_size_in_question(tmp_path: Path) -> None:
    with pytest.raises(
        MemoryLimitError, match=r"scan.nii: 9 × 8 × 7 voxels need 1 MiB to be read, and --max-ram leaves 0 MiB"
    ):
        open_scan(written(tmp_path / "scan.nii"), ["T1"], max_bytes=100)


@pytest.mark.parametrize("target", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (0.8, 1.0, 1.3)])
@pytest.mark.parametrize("margin", [0, 12])
def test_nnunets_preparing_takes_what_it_says(target: tuple[float, float, float], margin: int, peak: Any) -> None:
    plan = NnunetPlan.parse(plan_json(spacing=target))
    data: NDArray[Any] = np.random.default_rng(0).integers(1, 200, (1, 72, 96, 80)).astype(np.int16)
    data[:, :, :, :margin] = 0
    base = tracemalloc.get_traced_memory()[0]
    ready = nnunet_preprocess(data, (1.0, 1.0, 1.0), plan).properties
    crop, grid = ready.shape_after_cropping, ready.shape_after_resampling
    assert peak() - base <= preprocess_bytes(data[0].size, crop, grid, 1, 0) + SLACK


def test_the_machine_has_memory() -> None:
    assert 64 * MIB < machine_bytes() < 1 << 50


def test_max_ram_covers_reading(tmp_path: Path, peak: Any) -> None:
    path = written(tmp_path / "scan.nii.gz", np.zeros((160, 160, 100), np.int16))
    path.write_bytes(gzip.compress(path.read_bytes()))
    allowed = RUNTIME_BYTES / MIB + 2
    with Segmenter(transport=InMemoryTransport(card_of(), two_scores), max_ram_mib=allowed) as segmenter:
        tracemalloc.reset_peak()
        with pytest.raises(MemoryLimitError, match=r"need 5 MiB to be read, and --max-ram leaves 2 MiB"):
            segmenter(path)
    assert peak() < 4 * MIB + 2 * path.stat().st_size


def test_max_ram_covers_nnunets_preparing() -> None:
    plan = plan_json(n_labels=2, spacing=(1.0, 1.0, 1.0))
    card = card_of(orientation=None, nnunet=plan)
    with pytest.raises(MemoryLimitError, match=r"scan.nii: a spacing of 2 × 2 × 2 mm makes .* are left of what is"):
        prepare_scan(volume((60, 50, 40), (2.0, 2.0, 2.0)), card, max_bytes=MIB)
    assert prepare_scan(volume((60, 50, 40), (2.0, 2.0, 2.0)), card, max_bytes=128 * MIB).data.shape[1:] == (
        80,
        100,
        120,
    )


@pytest.mark.parametrize("changes", [{"roi_size": (20_000, 20_000, 20_000)}, {"tiling": {"overlap": 0.999}}])
def test_a_card_that_asks_for_more_than_the_machine_has_is_refused(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its ROI, or by so many tiles that the list of them alone fills the memory."""
    monkeypatch.setattr("voxtile.budget.machine_bytes", lambda: 512 * MIB)
    scan = volume((160, 160, 160), (1.0, 1.0, 1.0))
    with (
        Segmenter(transport=InMemoryTransport(card_of(**changes), two_scores)) as segmenter,
        pytest.raises(MemoryLimitError, match="and this machine has 512 MiB"),
    ):
        segmenter(scan)


def two_scores(tiles: NDArray[Any]) -> NDArray[Any]:
    values = np.maximum(tiles, 0)  # what lies outside the scan is the lowest number there is
    return np.concatenate([100 - values, values], axis=1)
