"""Translates a bundle's post-processing into the steps [[postprocessing]] of a spec and into its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from voxtile.transforms.base import Transform
from voxtile.transforms.postprocessing import Activations, AsDiscrete, Invert, MapLabelValue, Postprocessing
from voxtile_build.errors import SourceError
from voxtile_build.importers.bundle.lambdas import NotKnownError, function_of, value_of
from voxtile_build.importers.bundle.painting import Painted, painting_of
from voxtile_build.importers.bundle.refusals import Refusals
from voxtile_build.importers.bundle.steps import Step
from voxtile_build.importers.bundle.translating import classes_of, translated

CLASSES = classes_of(Postprocessing)
"""The transforms that are translated by their arguments alone, by name."""
PREDICTION = "pred"
"""The key under which MONAI's evaluator puts what the network gives."""
OUTPUT_ONLY = (
    *("SaveImage", "EnsureType", "ToDevice", "Identity", "CastToType", "ToTensor", "ToNumpy"),
    *("DeleteItems", "SelectItems", "CopyItems", "EnsureChannelFirst", "SqueezeDim"),
)
"""Steps after the network that do not change the labels."""
INVERTING = (
    *("transform", "orig_keys", "meta_keys", "orig_meta_keys", "meta_key_postfix", "to_tensor", "device", "post_func"),
    "support_dtype",
)
LARGEST_LABEL = 65_535
BLENDED = (
    "{where} puts labels back by blending their numbers (nearest_interp = false after AsDiscreted), which gives "
    "fractions at their borders; here every voxel takes its nearest label, as nearest_interp = true does"
)


@dataclass
class Finish:
    """What follows after the network.

    Attributes:
        steps: of the spec's chain.
        painted: regions in the order in which they are painted, where the bundle says it.
        notes: what is done in another way than MONAI does it.
    """

    steps: list[Transform] = field(default_factory=list)
    painted: list[Painted] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def decision(self) -> AsDiscrete | None:
        """The step that decides on labels."""
        return next((step for step in self.steps if isinstance(step, AsDiscrete)), None)

    def without_idle(self, resampled: bool) -> list[Transform]:
        """The steps, without what changes no label: softmax after the scores are back, and how voxels are blended.

        Args:
            resampled: whether the scan was resampled; if not, no voxel lies between others.
        """
        kinds = [type(step) for step in self.steps]
        inverse = kinds.index(Invert) if Invert in kinds else len(kinds)
        decision = kinds.index(AsDiscrete)
        found: list[Transform] = []
        for place, step in enumerate(self.steps):
            if isinstance(step, Activations) and step.softmax and inverse < place < decision:
                continue
            if isinstance(step, Invert) and place < decision and not resampled:
                step = Invert(nearest_interp=False)
            found.append(step)
        return found

    def output(self, names: Sequence[str]) -> dict[str, Any]:
        """[output] of the spec, for the network's output channels `names`."""
        if not self.painted:
            return {"labels": list(names)}
        values = {one.channel: one.value for one in self.painted}
        return {
            "labels": [{"name": name, "value": values[channel]} for channel, name in enumerate(names)],
            "region_order": [names[one.channel] for one in self.painted],
        }


def finish_of(steps: Sequence[Step], labels: int, where: str, refusals: Refusals) -> Finish:
    """What the post-processing amounts to.

    Args:
        steps: the post-processing.
        labels: how many output channels the network has.
        where: names the configuration in errors.
        refusals: gets the error of each step that cannot be translated.

    Raises:
        SourceError: nothing decides on labels.
    """
    finish = Finish()
    for step in steps:
        with refusals.collect():
            _add(step, labels, finish)
    if finish.decision is None and not any(step.name == "AsDiscrete" for step in steps):
        raise SourceError(f"{where}: postprocessing: expected AsDiscreted with argmax or threshold, found none")
    return finish


def _add(step: Step, labels: int, finish: Finish) -> None:
    keys = step.keys(PREDICTION)
    if step.name in OUTPUT_ONLY:
        return
    if PREDICTION not in keys:
        raise step.refusal(f"expected it to concern {PREDICTION!r}, found the keys {list(keys)}")
    if finish.painted and step.name != "Invert":
        raise step.refusal("it comes after the Lambdad that paints regions into one mask; let that come last")
    if step.name == "Lambda":
        _add_function(step, labels, finish)
    elif step.name == "Invert":
        finish.steps.append(_inverse(step, finish))
    elif step.name in CLASSES:
        # Labels are whole numbers, and the client chooses a type that holds them.
        finish.steps.append(translated(step, CLASSES[step.name], ignored=("dtype",)))
    else:
        raise step.refusal("there is no counterpart after the network")


def _inverse(step: Step, finish: Finish) -> Transform:
    for key, wanted in (("transform", "preprocessing"), ("orig_keys", "image")):
        written = step.given.get(key)
        found: Any = step.text(key) if key == "orig_keys" else None
        if key == "orig_keys" and written is not None:
            found = step.value(key)
            if found not in (wanted, [wanted]):
                raise step.refusal(f"expected orig_keys 'image', whose transforms are undone, found {found!r}")
        if key == "transform" and written is not None:
            whole = step.config.raw("preprocessing")
            if step.config.followed(written, step.where) is not whole:
                raise step.refusal(f"expected transform '@preprocessing', found {written!r}")
    made = translated(step, Invert, ignored=INVERTING)
    assert isinstance(made, Invert)
    if finish.decision is not None and finish.decision.argmax and not made.nearest_interp:
        finish.notes.append(BLENDED.format(where=step.where))
        return Invert(nearest_interp=True)
    return made


def _add_function(step: Step, labels: int, finish: Finish) -> None:
    """A Lambdad after the decision: regions painted into one mask, or other numbers for labels."""
    decision = finish.decision
    if decision is None:
        raise step.refusal(f"a function of scores has no counterpart, found {step.text('func')!r}")
    if not decision.argmax:
        finish.painted = painting_of(step, labels)
        return
    try:
        function = function_of(step.text("func"))
        values = [value_of(function, label) for label in range(labels)]
    except (NotKnownError, ArithmeticError):
        raise step.refusal(
            f"expected other numbers for labels, such as $lambda x: torch.where(x == 2, 1, x), found "
            f"{step.text('func')!r}, which is not run"
        ) from None
    targets = [int(value) for value in values]
    if any(value != target or not 0 <= target <= LARGEST_LABEL for value, target in zip(values, targets, strict=True)):
        raise step.refusal(f"expected whole numbers from 0 to {LARGEST_LABEL} for labels, found {values}")
    changed = [(label, target) for label, target in enumerate(targets) if label != target]
    if changed:
        finish.steps.append(
            MapLabelValue(orig_labels=tuple(one for one, _ in changed), target_labels=tuple(two for _, two in changed))
        )
