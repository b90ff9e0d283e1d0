"""Two folds that are programs of torch.export in files, compiled in fp16 and averaged on the server."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.build_specs import ROI
from tests.support.network_files import spec_of, write_exported
from voxtile_build.build import build_models
from voxtile_build.certificate.served import ServedRunner
from voxtile_build.certificate.verify import verify
from voxtile_build.evaluation.whole_scan import torch_runner
from voxtile_build.graph.wrapper import wrap
from voxtile_build.importers.network import load_network
from voxtile_build.repository.card import get_card
from voxtile_build.repository.config import read_config
from voxtile_build.repository.folds import Fold, Model
from voxtile_build.spec.spec import Spec
from voxtile_server.embedded import EmbeddedServer

FP16 = 5e-3
"""fp16 keeps 11 bits, of scores around 1 and through one layer; the two folds differ by 100 times as much."""

pytestmark = pytest.mark.usefixtures("one_thread")


class OneLayer(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Conv3d(1, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image)


def fold_spec(file: Path) -> Spec:
    changes = {"engines": ("aotinductor",), "max_batch_size": 2, "threads": 1}
    made = spec_of(write_exported(OneLayer(seed=int(file.stem[-1])).eval(), file))
    lenient = {"min_dice": 0.9, "max_changed": 0.05, "allow_unseen_labels": True}
    return made.model_copy(
        update={
            "serving": made.serving.model_copy(update=changes),
            "precision": made.precision.model_copy(update={"aotinductor": "fp16"}),
            "acceptance": made.acceptance.model_copy(update=lenient),
        }
    )


@pytest.mark.slow
def test_folds_in_files_are_compiled_in_fp16_and_averaged_where_they_are_served(tmp_path: Path) -> None:
    specs = [fold_spec(tmp_path / f"net{seed}.pt2") for seed in (1, 2)]
    name, repository = specs[0].name, tmp_path / "models"
    folds = tuple(Fold(f"{name}_fold_{at}", partial(load_network, made)) for at, made in enumerate(specs))
    (published,) = build_models([Model(specs[0], folds)], repository)
    assert published.card.certificates["aotinductor"].precision == "fp16"
    given = {"roi": np.random.default_rng(3).normal(0, 1, (2, 1, *ROI)).astype(np.float32)}
    first, second = (torch_runner(wrap(load_network(made), made))(given) for made in specs)
    assert np.abs(first - second).max() > 100 * FP16
    with EmbeddedServer(repository) as server:
        card = get_card(read_config(repository / name), repository / name)
        with ServedRunner(server.grpc_url, card, name, str) as served:
            found = served(given)
        verdicts = verify(name, repository, server.grpc_url)
        server.kill()
    np.testing.assert_allclose(found, (first + second) / 2, rtol=0, atol=FP16)
    assert not np.array_equal(found, (first + second) / 2), "nothing was rounded"
    entries = [f"{name}_fold_0_aotinductor", f"{name}_fold_1_aotinductor", f"{name}_mean_onnxruntime", name]
    assert [verdict.entry for verdict in verdicts] == entries
    assert all(verdict.holds for verdict in verdicts)
