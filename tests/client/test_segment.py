"""Whole scans through the real server, against MONAI over the same network in PyTorch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from tests.support.heads import AFFINE, head, image
from tests.support.parity import FLIPPED, PROBABILITY_ERROR
from tests.support.small_models import ROI, small_unet
from voxtile import ConnectionConfig, InputError, MemoryLimitError, Options, Segmentation, Segmenter
from voxtile.budget import MIB
from voxtile_server.embedded import EmbeddedServer


def reference(values: NDArray[np.float32], overlap: float, mode: str) -> NDArray[np.float32]:
    """Probabilities [label, x, y, z] by MONAI over fp32 PyTorch."""
    inside = values[values != 0].astype(np.float64)
    x = torch.from_numpy(((values - inside.mean()) / inside.std()).astype(np.float32))[None, None]
    with torch.no_grad():
        logits = sliding_window_inference(x, ROI, 4, small_unet(), overlap=overlap, mode=mode)
    return torch.softmax(logits, 1)[0].numpy()


@pytest.fixture(scope="module")
def segmenter(server: EmbeddedServer) -> Iterator[Segmenter]:
    with Segmenter(server.grpc_url, "small-unet") as one:
        yield one


@pytest.mark.parametrize("shape", [(70, 53, 61), (41, 20, 37)], ids=["odd", "smaller than the ROI"])
@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_equals_monai(server: EmbeddedServer, shape: tuple[int, int, int], overlap: float, mode: str) -> None:
    values = head(shape)
    with Segmenter(server.grpc_url, "small-unet", overlap=overlap, mode=mode, keep_scores=True) as one:
        result = one.segment(image(values))
    expected = reference(values, overlap, mode)
    assert result.scores is not None
    found = torch.softmax(torch.from_numpy(result.scores), 0).numpy()
    assert np.abs(found - expected).max() <= PROBABILITY_ERROR
    assert (np.asarray(result.mask.dataobj) != expected.argmax(0)).mean() <= FLIPPED


@pytest.mark.parametrize("model", ["identity", "identity-int16"])
@pytest.mark.parametrize("shape", [(33, 41, 17), (5, 7, 3), (16, 24, 8)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_identity_network_gives_the_scan_back(
    server: EmbeddedServer, model: str, shape: tuple[int, int, int], overlap: float, mode: str
) -> None:
    values = np.random.default_rng(2).integers(-1000, 3000, shape).astype(np.float32)
    with Segmenter(server.grpc_url, model, overlap=overlap, mode=mode, keep_scores=True) as one:
        scores = one.segment(image(values)).scores
    assert scores is not None
    np.testing.assert_array_equal(np.rint(scores[0]), values)


def stored_as(values: NDArray[np.float32], affine: NDArray[np.float64], codes: str) -> nib.Nifti1Image:
    """The same anatomy, stored along other axes."""
    change = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    stored = nib.Nifti1Image(
        apply_orientation(values, change).astype(np.int16), affine @ inv_ornt_aff(change, values.shape)
    )
    stored.header.set_qform(stored.affine, code=1)
    stored.header.set_sform(stored.affine, code=2)
    return stored


def oblique() -> NDArray[np.float64]:
    angle = np.deg2rad(14)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


@pytest.mark.parametrize("affine", [AFFINE, oblique()], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", ["LPS", "LAS", "SPR", "AIL"])
def test_same_anatomy_same_mask_on_the_scans_own_grid(
    segmenter: Segmenter, affine: NDArray[np.float64], codes: str
) -> None:
    values = head((40, 47, 36))
    plain = segmenter(stored_as(values, affine, "RAS"))
    scan = stored_as(values, affine, codes)
    mask = segmenter(scan)
    change = ornt_transform(io_orientation(mask.affine), io_orientation(affine))
    np.testing.assert_array_equal(apply_orientation(np.asarray(mask.dataobj), change), np.asarray(plain.dataobj))
    for form in ("qform", "sform"):
        matrix, code = getattr(mask.header, f"get_{form}")(coded=True)
        expected, expected_code = getattr(scan.header, f"get_{form}")(coded=True)
        np.testing.assert_allclose(matrix, expected, atol=1e-5)
        assert code == expected_code
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-5)


def test_the_result_is_bit_identical_for_any_window_and_road(server: EmbeddedServer) -> None:
    scan = image(head((70, 53, 61)))
    results = []
    for in_flight, shared_memory in ((1, True), (16, True), (1, False), (16, False)):
        road = ConnectionConfig(shared_memory=shared_memory)
        with Segmenter(server.grpc_url, "small-unet", keep_scores=True, in_flight=in_flight, connection=road) as one:
            result = one.segment(scan)
        assert result.report.shared_memory is shared_memory
        results.append(result.scores)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_other_batches_change_no_more_than_an_engines_sums_do(server: EmbeddedServer) -> None:
    scan = image(head((70, 53, 61)))
    results = []
    for batch in (1, 3, 4):
        with Segmenter(server.grpc_url, "small-unet", keep_scores=True, sw_batch_size=batch) as one:
            results.append(one.segment(scan).scores)
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=PROBABILITY_ERROR)


def test_statistics_show_batches_larger_than_one(server: EmbeddedServer, segmenter: Segmenter) -> None:
    from tritonclient.grpc import InferenceServerClient

    segmenter(image(head((70, 53, 61))))
    client = InferenceServerClient(server.grpc_url)
    statistics = client.get_inference_statistics("small-unet").model_stats[0]
    assert statistics.inference_count > statistics.execution_count > 0
    batches = client.get_inference_statistics("small-unet_openvino").model_stats[0].batch_stats
    assert max(batch.batch_size for batch in batches) > 1
    client.close()


def test_report(segmenter: Segmenter) -> None:
    result = segmenter.segment(image(head((70, 53, 61))))
    report = result.report
    labels = np.asarray(result.mask.dataobj)
    assert report.shape == (70, 53, 61)
    assert report.tiles == 4 * 3 * 3
    assert report.bytes_sent >= report.tiles * 4 * 32**3
    assert report.bytes_received == report.tiles * 3 * 4 * 32**3
    assert {name: volume.voxels for name, volume in report.labels.items()} == {
        name: int((labels == value).sum()) for value, name in enumerate(("background", "one", "two"))
    }
    assert report.labels["one"].ml == pytest.approx(report.labels["one"].voxels * 1.2 * 0.9 / 1000, rel=1e-4)
    seconds = report.seconds.model_dump()
    assert sum(value for name, value in seconds.items() if name != "total") <= seconds["total"] * 1.001
    assert report.certificate["accepted"] is True
    assert report.changes == []


def test_what_changes_the_result_is_named(server: EmbeddedServer) -> None:
    with Segmenter(server.grpc_url, "small-unet", overlap=0.1, skip_empty=True) as one:
        report = one.segment(image(head((40, 40, 40)))).report
    assert report.changes == ["overlap 0.5 -> 0.1", "empty tiles skipped"]


def test_skipping_leaves_out_empty_tiles_and_a_spot_check_asks_for_some(server: EmbeddedServer) -> None:
    values = np.zeros((40, 40, 200), np.float32)
    values[:, :, :60] = head((40, 40, 60))
    with Segmenter(server.grpc_url, "small-unet", skip_empty=True, spot_check=3) as skipping:
        result = skipping.segment(image(values))
    with Segmenter(server.grpc_url, "small-unet") as full:
        whole = full.segment(image(values))
    report = result.report
    assert report.skipped_tiles > 0
    assert report.tiles + report.skipped_tiles == whole.report.tiles
    assert report.spot_checked_tiles == 3
    np.testing.assert_array_equal(result.labels[:, :, :60], whole.labels[:, :, :60])
    assert (result.labels[:, :, 160:] == 0).all()


def test_paths_images_and_arrays_of_channels_give_the_same(segmenter: Segmenter, tmp_path: Path) -> None:
    scan = image(head((40, 35, 33)))
    nib.save(scan, tmp_path / "head.nii.gz")
    expected = np.asarray(segmenter(scan).dataobj)
    for source in (tmp_path / "head.nii.gz", str(tmp_path / "head.nii.gz"), [scan]):
        np.testing.assert_array_equal(np.asarray(segmenter(source).dataobj), expected)


def test_too_little_memory_is_refused_before_any_tile(server: EmbeddedServer) -> None:
    with (
        Segmenter(server.grpc_url, "small-unet", options=Options(max_ram_mib=1)) as one,
        pytest.raises(MemoryLimitError, match="--max-ram allows 1 MiB"),
    ):
        one(image(head((70, 53, 61))))


def test_less_memory_means_fewer_tiles_at_once_and_the_same_mask(server: EmbeddedServer) -> None:
    scan = image(head((70, 53, 61)))
    with Segmenter(server.grpc_url, "small-unet") as free:
        whole = free.segment(scan)
    limit = whole.report.predicted_peak_bytes - 27 * MIB
    with Segmenter(server.grpc_url, "small-unet", max_ram_mib=limit / MIB) as tight:
        result = tight.segment(scan)
    assert result.report.in_flight < whole.report.in_flight
    assert result.report.predicted_peak_bytes <= limit
    np.testing.assert_array_equal(result.labels, whole.labels)


def test_an_event_loop_goes_on_meanwhile(segmenter: Segmenter) -> None:
    ticks: list[int] = []

    async def tick() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0.005)

    async def both() -> Segmentation:
        ticking = asyncio.create_task(tick())
        try:
            return await segmenter.asegment(image(head((70, 53, 61))))
        finally:
            ticking.cancel()

    assert asyncio.run(both()).report.tiles == 36
    assert len(ticks) > 5


def test_an_overlap_of_one_is_refused(server: EmbeddedServer) -> None:
    with pytest.raises(InputError, match=r"overlap lies in \[0, 1\)"):
        Segmenter(server.grpc_url, "small-unet", overlap=1.0)
