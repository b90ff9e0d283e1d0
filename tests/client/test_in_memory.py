"""Any transport will do: the pipeline and RemoteNetwork over a function, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from tests.support.heads import AFFINE, head, image
from tests.support.in_memory import InMemoryTransport
from tests.support.phantoms import card_of
from voxtile import InputError, RemoteNetwork, ScanInput, Segmenter, Transport

LIMIT = 100.0


def bright(tiles: NDArray[Any]) -> NDArray[Any]:
    """Scores of two classes: the second is the larger where a voxel is above LIMIT; outside the scan, the first."""
    values = np.maximum(tiles, 0)
    return np.concatenate([np.full_like(values, LIMIT), values], axis=1)


def transport(**changes: Any) -> InMemoryTransport:
    return InMemoryTransport(card_of(**changes), bright)


def test_it_has_the_protocols_members() -> None:
    one: Transport = transport()
    assert one.servers == ("memory",)


def test_a_segmenter_over_a_function() -> None:
    values = head((40, 21, 33))
    one = transport()
    with Segmenter(transport=one, sw_batch_size=3) as segmenter:
        result = segmenter.segment(image(values))
    assert one.closed
    np.testing.assert_array_equal(result.labels, values > LIMIT)
    report = result.report
    assert (report.servers, report.shared_memory, report.retries) == (["memory"], False, 0)
    assert report.bytes_sent == report.tiles * 4 * 16**3
    assert report.bytes_received == 2 * report.bytes_sent


def forms(values: NDArray[np.float32], folder: Path) -> dict[str, ScanInput]:
    """One scan in every form that a Segmenter takes."""
    simple = sitk.GetImageFromArray(values.astype(np.int16).T)
    simple.SetSpacing((1.0, 1.2, 0.9))
    simple.SetOrigin((30.0, -10.0, 5.0))
    simple.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    nib.save(image(values), folder / "head.nii.gz")
    return {
        "path": folder / "head.nii.gz",
        "text": str(folder / "head.nii.gz"),
        "bytes": (folder / "head.nii.gz").read_bytes(),
        "nibabel": image(values),
        "SimpleITK": simple,
        "array with its affine": (values, AFFINE),
        "list of one": [image(values)],
    }


def test_every_form_of_a_scan_gives_the_same_mask(tmp_path: Path) -> None:
    values = head((24, 21, 19))
    with Segmenter(transport=transport()) as segmenter:
        for name, form in forms(values, tmp_path).items():
            mask = segmenter(form)
            np.testing.assert_array_equal(np.asarray(mask.dataobj), values > LIMIT, err_msg=name)
            np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5, err_msg=name)


def test_a_network_over_a_function() -> None:
    x = np.random.default_rng(3).normal(LIMIT, 9, (7, 1, 16, 16, 16)).astype(np.float32)
    with RemoteNetwork(transport=transport()) as network:
        np.testing.assert_array_equal(network(x), bright(x))


def test_loading_once_and_running_twice_adds_nothing_up() -> None:
    values = head((40, 21, 33))
    with Segmenter(transport=transport()) as segmenter:
        loaded = segmenter.load(image(values))
        before = loaded.seconds.model_copy()
        first, second = segmenter.run(loaded), segmenter.run(loaded)
    assert loaded.seconds == before
    for result in (first, second):
        seconds = result.report.seconds
        assert (seconds.read, seconds.prepare) == (before.read, before.prepare)
        steps = seconds.model_dump(exclude={"total"}).values()
        assert sum(steps) <= seconds.total * 1.001
        assert seconds.total >= before.total
    assert second.report.bytes_sent == first.report.bytes_sent
    np.testing.assert_array_equal(first.labels, second.labels)


def test_what_lacks_a_server_and_a_transport_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected the address of a server .* found no address"):
        Segmenter(model="brain")
    with pytest.raises(InputError, match="found no model's name"):
        RemoteNetwork("localhost:8001")


def test_an_error_of_the_transport_ends_the_scan() -> None:
    def broken(_: NDArray[Any]) -> NDArray[Any]:
        raise RuntimeError("the network is broken")

    with (
        Segmenter(transport=InMemoryTransport(card_of(), broken)) as segmenter,
        pytest.raises(RuntimeError, match="is broken"),
    ):
        segmenter(image(head((20, 20, 20))))
