"""Finds the network that a bundle runs: by name with its weights, or else in an exported file of the bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtile_build.errors import BuildError, NetworkError, SourceError
from voxtile_build.importers.bundle.config import Config
from voxtile_build.importers.bundle.steps import SPECIAL
from voxtile_build.importers.bundle.targets import NETWORKS, TARGET, monai_name
from voxtile_build.importers.bundle.weights import check_hash, network_part, weights_of
from voxtile_build.networks import find_network
from voxtile_build.networks.fetched import require_fetched
from voxtile_build.networks.weights import sha256_of_file

ENGINES, EVALUATOR = "monai.engines", "SupervisedEvaluator"
RUN = {
    ("evaluator", "inferer"): "inferer",
    ("evaluator", "postprocessing"): "postprocessing",
    ("evaluator", "val_data_loader", "dataset", "transform"): "preprocessing",
}
"""What a bundle's evaluator runs, and under which id it is read."""
OWN_CODE = ("prepare_batch", "iteration_update")
"""Arguments of the evaluator that put code in the place of MONAI's."""
SHOWN = 200
"""Letters of a part that an error shows."""
GONE = {"SwinUNETR": ("img_size",)}
"""Arguments that MONAI ignored and later removed; older bundles still have them."""
EXPORTED = ("models/model.ts", "models/model.pt2", "models/model.onnx")
"""Where a bundle has its network as a file, the first that is there."""
EXPORT = "export it by `python -m monai.bundle ckpt_export` as models/model.ts in the bundle, which is taken then"


def network_of(config: Config, folder: Path, about: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """[network] and [weights] of a spec, and notes for the user.

    Args:
        config: the configuration.
        folder: the bundle.
        about: `source` and `licence` of the weights.

    Raises:
        BuildError: there is no network that can be had, or its weights cannot be found.
    """
    try:
        part = _network_part(config)
        named = _by_name(config, part)
    except BuildError as error:
        return _in_file(folder, about, error)
    weights = weights_of(config, folder, part)
    return {
        "network": named,
        "weights": {"file": str(weights.resolve()), "sha256": sha256_of_file(weights), **about},
    }, ()


def _in_file(folder: Path, about: Mapping[str, str], reason: BuildError) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The network in the bundle's own file, where it cannot be made by name."""
    file = next((folder / name for name in EXPORTED if (folder / name).is_file()), None)
    if file is None:
        raise type(reason)(f"{reason}; {EXPORT}") from None
    require_fetched(file)
    check_hash(folder, file)
    note = (
        f"the network is taken from {file.relative_to(folder)} of the bundle ({about['source']}), because it cannot be "
        "made by name; that it holds the bundle's newest weights is not checked"
    )
    return {"network": {"file": str(file.resolve()), "sha256": sha256_of_file(file), **about}}, (note,)


def _network_part(config: Config) -> Mapping[str, Any]:
    part = config.raw("network_def")
    if not isinstance(part, Mapping) or TARGET not in part:
        raise SourceError(f"{config.where}: network_def: expected a network with {TARGET}, found {_shown(part)}")
    return part


def _by_name(config: Config, part: Mapping[str, Any]) -> dict[str, Any]:
    """[network] of `network_def`; all of its arguments must be plain values."""
    name = monai_name(part, NETWORKS, f"{config.where}: network_def")
    try:
        find_network(name)
    except NetworkError as error:
        raise NetworkError(f"{config.where}: network_def: {error}") from None
    args = {
        key: config.plain(value, f"network_def::{key}")
        for key, value in part.items()
        if not SPECIAL.fullmatch(key) and key not in GONE.get(name, ())
    }
    return {"name": name, "args": args}


def check_evaluator(config: Config) -> None:
    """Refuse a bundle that runs other parts than those that are read here.

    Raises:
        SourceError: names the part.
    """
    evaluator, network = config.raw("evaluator"), config.raw("network_def")
    given = evaluator if isinstance(evaluator, Mapping) else {}
    if given:
        _check_engine(config, given)
    for key, value in (("network", config.raw("network")), ("evaluator::network", given.get("network"))):
        if value is not None and isinstance(network, Mapping) and network_part(config, value, key) is not network:
            raise _other_part(config, key, "network_def", value)
    for path, read in RUN.items():
        part = _part_at(config, path)
        if part is not None and part is not config.raw(read):
            raise _other_part(config, "::".join(path), read, part)


def _check_engine(config: Config, evaluator: Mapping[str, Any]) -> None:
    name = monai_name(evaluator, ENGINES, f"{config.where}: evaluator")
    own = [key for key in OWN_CODE if evaluator.get(key) is not None]
    if name != EVALUATOR or own:
        raise SourceError(
            f"{config.where}: evaluator: expected {EVALUATOR} with MONAI's own steps, found {', '.join([name, *own])}, "
            "which has no counterpart"
        )


def _part_at(config: Config, path: Sequence[str]) -> Any:
    """What lies at the end of a path of keys and references; None where it ends before."""
    part: Any = config.content
    for key in path:
        if not isinstance(part, Mapping):
            return None
        part = config.followed(part.get(key), "::".join(path))
    return part


def _other_part(config: Config, where: str, read: str, found: Any) -> SourceError:
    return SourceError(
        f"{config.where}: {where}: expected '@{read}', found {_shown(found)}; only "
        f"{read} is read, and the bundle runs another part: let both be the same in a copy of the bundle"
    )


def _shown(part: Any) -> str:
    text = json.dumps(part, default=str)
    return f"{text[:SHOWN]}{'…' if len(text) > SHOWN else ''}"
