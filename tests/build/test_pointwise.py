"""Steps of a chain in the graph are MONAI's; what a network gives is what its spec says that it gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai import transforms as monai
from torch import nn

from tests.support.build_specs import ROI, Linear, spec
from voxtile.transforms.base import selection
from voxtile_build.errors import NetworkError
from voxtile_build.graph.wrapper import Wrapper, wrap

INVERTED = {"transform": "ScaleIntensityRange", "a_min": 900, "a_max": -300, "b_min": -1, "b_max": 2.5, "clip": True}
RANGE = {"transform": "ScaleIntensityRange", "a_min": -100, "a_max": 800}
OWN = {"transform": "NormalizeIntensity", "subtrahend": [3, -50], "divisor": [2.5, 9], "nonzero": True}
FACTOR = {"transform": "ScaleIntensity", "factor": -0.3}
ABOVE = {"transform": "ThresholdIntensity", "threshold": 100, "cval": -5.5}
BELOW = {"transform": "ThresholdIntensity", "threshold": 0.5, "above": False}
MASK = {"transform": "MaskIntensity", "select_fn": "x >= 20"}


def by_monai(step: dict[str, Any], image: torch.Tensor) -> torch.Tensor:
    """MONAI's step of [channel, *spatial]."""
    given = {key: value for key, value in step.items() if key != "transform"}
    if step["transform"] == "MaskIntensity":
        return torch.as_tensor(monai.MaskIntensity(select_fn=selection(given["select_fn"]))(image, image))
    if step["transform"] == "ScaleIntensity":
        given |= {"minv": None, "maxv": None}
    if step["transform"] == "NormalizeIntensity":
        given |= {"channel_wise": True, **{key: torch.tensor(given[key]) for key in ("subtrahend", "divisor")}}
        given |= {key: [float(number) for number in given[key]] for key in ("subtrahend", "divisor")}
    return torch.as_tensor(getattr(monai, step["transform"])(**given)(image.clone()))


@pytest.mark.parametrize("dtype", ["fp32", "int16"])
@pytest.mark.parametrize(
    "steps",
    [
        [INVERTED],
        [RANGE],
        [OWN],
        [FACTOR],
        [ABOVE],
        [BELOW],
        [MASK],
        [ABOVE, INVERTED, MASK],
        [RANGE, OWN, FACTOR, BELOW],
    ],
    ids=lambda steps: "-".join(step["transform"][:9] for step in steps),
)
def test_steps_in_the_graph_are_monais(steps: list[dict[str, Any]], dtype: str) -> None:
    chosen = spec(
        input={"channels": ["a", "b"], "dtype": dtype},
        output={"labels": ["x", "y"]},
        preprocessing=steps,
        tiling={"cval": 0.25},
    )
    wrapper = Wrapper(nn.Identity(), chosen)
    image = torch.randint(-400, 1000, (2, *ROI), generator=torch.Generator().manual_seed(1)).to(torch.float32)
    image[:, 2:4] = 0
    expected = image
    for step in steps:
        expected = by_monai(step, expected)
    roi = image.to(torch.int16) if dtype == "int16" else image
    torch.testing.assert_close(wrapper.image(roi[None])[0], expected, rtol=3e-7, atol=0)
    outside = torch.full_like(roi[None], -32768 if dtype == "int16" else torch.finfo(torch.float32).min)
    assert (wrapper.image(outside) == 0.25).all()


@pytest.mark.parametrize("step", [{"transform": "CropForeground"}, {"transform": "ScaleIntensity", "maxv": 2}])
def test_a_step_that_sees_more_than_one_value_is_never_in_the_graph(step: dict[str, Any]) -> None:
    chosen = spec(preprocessing=[RANGE, step, ABOVE])
    assert [type(one).__name__ for one in chosen.preparation.graph] == ["ThresholdIntensity"]


FACTORS = (0.5, -1.0, 2.0)


@pytest.mark.parametrize(
    ("output", "regions", "last", "refused", "warned"),
    [
        ("logits", False, nn.Identity(), "", False),
        ("logits", False, nn.Softmax(1), "", True),
        ("logits", True, nn.Sigmoid(), "", True),
        ("probabilities", False, nn.Softmax(1), "", False),
        ("probabilities", True, nn.Sigmoid(), "", False),
        ("probabilities", False, nn.Sigmoid(), "found sums from", False),
        ("probabilities", False, nn.Identity(), "found values from -", False),
        ("probabilities", True, nn.Identity(), "found values from -", False),
    ],
)
def test_probabilities_are_what_they_are_called(
    output: str, regions: bool, last: nn.Module, refused: str, warned: bool
) -> None:
    chosen = spec(
        network={"output": output},
        output={"regions": regions, **({"region_order": ["background", "one", "two"]} if regions else {})},
    )
    network = nn.Sequential(Linear(FACTORS), last).eval()
    if refused:
        with pytest.raises(NetworkError, match=f"network.output: expected probabilities.*{refused}"):
            wrap(network, chosen)
        return
    wrapper = wrap(network, chosen)
    assert bool(wrapper.warnings) == warned
    noise = torch.randn(1, 1, *ROI)
    if output == "probabilities":
        assert chosen.output.scores == "probabilities"
        torch.testing.assert_close(wrapper(noise), network(noise))


def test_advice_is_about_what_is_wrong() -> None:
    class Two(nn.Module):
        def forward(self, image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return image + other

    with pytest.raises(
        NetworkError, match=r"missing 1 required positional argument.*; the network takes several inputs"
    ):
        wrap(Two(), spec())
    sized = spec(network={"name": "UNETR", "args": {"img_size": [32, 32, 32]}})
    with pytest.raises(NetworkError, match=r"roi_size and network.args.img_size must be the same, found img_size \[32"):
        wrap(nn.Conv3d(1, 3, 99), sized)
