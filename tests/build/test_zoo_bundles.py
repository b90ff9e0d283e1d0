"""Bundles in the shapes of MONAI's model zoo import as they are published, and give what MONAI gives with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.bundles import write_scan
from tests.support.importing import import_bundle
from tests.support.zoo_bundles import SHAPES, is_tie, run_zoo_bundle, write_zoo_bundle
from voxtile import Segmenter
from voxtile_build.importers.bundle.bundle import spec_of
from voxtile_server.embedded import EmbeddedServer

DIFFERENT = 1e-5
"""Share of voxels whose two best scores are equal to float32's rounding: they have no right label."""
SERVING = {"max_batch_size": 2, "warm_up": False, "engines": ["onnxruntime"]}
STEPS = {
    "spleen": ["Orientation", "Spacing", "ScaleIntensityRange", "Activations", "Invert", "AsDiscrete"],
    "ventricular": ["ScaleIntensity", "Activations", "Invert", "AsDiscrete"],
    "swin_btcv": ["Orientation", "Spacing", "ScaleIntensityRange", "Activations", "Invert", "AsDiscrete"],
    "pediatric": [
        *("Orientation", "Spacing", "ScaleIntensityRange", "CropForeground"),
        *("Activations", "Invert", "AsDiscrete"),
    ],
    "brats": ["NormalizeIntensity", "Activations", "Invert", "AsDiscrete"],
    "wholebody": [
        *("Orientation", "Spacing", "NormalizeIntensity", "ScaleIntensity"),
        *("Activations", "AsDiscrete", "Invert"),
    ],
    "prostate": [
        *("Orientation", "Spacing", "ScaleIntensity", "NormalizeIntensity"),
        *("AsDiscrete", "KeepLargestConnectedComponent", "Invert"),
    ],
    "template": ["ScaleIntensity", "Activations", "AsDiscrete"],
    "dints": ["Orientation", "Spacing", "ScaleIntensityRange", "Activations", "Invert", "AsDiscrete"],
}
BLENDED = ("prostate",)
"""Bundles that put labels back by blending their numbers; compared with MONAI putting them back as a note says."""

REGIONS = ("brats",)


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_shape_is_translated_step_by_step(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    spec = spec_of(write_zoo_bundle(tmp_path / name, shape), name)
    assert [type(step).__name__ for step in (*(spec.preprocessing or ()), *(spec.postprocessing or ()))] == STEPS[name]
    assert [label.name for label in spec.output.labels] == shape.labels
    assert len(spec.input.channels) == shape.count
    assert (spec.network.file is not None) == (shape.exported is not None)
    if shape.files:
        assert spec.weights is not None
        assert spec.weights.file.name == shape.files[0]


@pytest.fixture(scope="module", params=SHAPES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, str]]:
    """Its name, the bundle, and where a server offers it."""
    name: str = request.param
    root = tmp_path_factory.mktemp(name)
    folder = write_zoo_bundle(root / "bundle", SHAPES[name])
    import_bundle(folder, name, root / "models", {"serving": SERVING})
    with EmbeddedServer(root / "models") as server:
        yield name, folder, server.grpc_url
        server.kill()


@pytest.mark.slow
def test_a_served_bundle_gives_the_labels_of_monai(served: tuple[str, Path, str], tmp_path: Path) -> None:
    name, folder, url = served
    shape = SHAPES[name]
    names = [tmp_path / f"scan_{index}.nii.gz" for index in range(shape.count)]
    files = [write_scan(file, shape.size, shape.codes, index) for index, file in enumerate(names)]
    expected, scores = run_zoo_bundle(folder, shape, files, nearest=name in BLENDED)
    with Segmenter(url, name) as segmenter:
        labels = np.asarray(segmenter.segment(files).mask.dataobj)
    assert len(np.unique(expected)) >= 2, "the scan must hold more than one label to prove anything"
    wrong = labels != expected
    if name not in REGIONS and scores.shape[1:] == labels.shape and wrong.any():
        wrong &= ~is_tie(scores, labels)
    different = int(wrong.sum())
    print(f"{name}: {different} of {labels.size} voxels differ")
    assert different <= DIFFERENT * labels.size
