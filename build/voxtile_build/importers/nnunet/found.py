"""Says what a path is that is no trained nnU-Net v2 folder, and what to give in its place. Reads names alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

SEPARATOR = "__"
"""Trained models are called TRAINER__PLANS__CONFIGURATION."""
SHOWN = 8
"""Folders in a message at most."""
CHECKPOINTS = "checkpoint_*.pth"
V1_CHECKPOINTS = "model_*.model"
ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def trained_folders(path: Path) -> tuple[Path, ...]:
    """The trained models right in a folder."""
    return tuple(sorted(file.parent for file in path.glob(f"*{SEPARATOR}*/plans.json")))


def what_was_found(path: Path) -> str:
    """What the path is, and what to do: the end of a sentence "expected a trained folder, found …"."""
    if not path.exists():
        return "no such folder; check its path"
    return _file(path) if path.is_file() else _folder(path)


def _file(path: Path) -> str:
    if path.match(CHECKPOINTS) and path.parent.name.startswith("fold_"):
        fold = path.parent.name.removeprefix("fold_")
        return (
            f"one checkpoint; give the folder {path.parent.parent} with --folds {fold} --checkpoint {path.name}, "
            "because the network stands in its plans.json"
        )
    if path.match(V1_CHECKPOINTS) or path.name.endswith(".model.pkl"):
        return _v1("a checkpoint")
    if path.name.endswith(ARCHIVES):
        return "an archive; unpack it, and give the folder TRAINER__PLANS__CONFIGURATION in it"
    if path.name in ("plans.json", "dataset.json"):
        return f"one of its files; give its folder, {path.parent}"
    return "a file; give the folder TRAINER__PLANS__CONFIGURATION, or a zip file of nnUNetv2_export_model_to_zip"


def _folder(path: Path) -> str:
    if path.name.startswith("fold_") and _any(path, CHECKPOINTS):
        fold = path.name.removeprefix("fold_")
        return f"one of its folds; give the folder above it, {path.parent}, with --folds {fold}"
    if _any(path, "plans.pkl", "*/plans.pkl", "*/*/plans.pkl", f"fold_*/{V1_CHECKPOINTS}", V1_CHECKPOINTS):
        return _v1("a model")
    models = trained_folders(path)
    if models:
        return (
            f"{_listed(models)}; give the folder TRAINER__PLANS__CONFIGURATION of one of them, or choose one by "
            "--configuration"
        )
    datasets = sorted({model.parent for one in path.glob("*/") for model in trained_folders(one)})
    if datasets:
        return f"results of {len(datasets)} data sets ({_listed(datasets)}); give the folder of one of them"
    if _any(path, "gt_segmentations", "dataset_fingerprint.json", "nnUNet*Plans*.json", "nnUNetPlans_*/"):
        return f"preprocessed data, which no network was trained in; {_results(path)}"
    if _any(path, "imagesTr", "labelsTr", "imagesTs"):
        return f"raw data, which a network is trained on; {_results(path)}"
    if _any(path, "configs/inference.*", "configs/metadata.json"):
        return "a MONAI bundle; give it to voxtile-build bundle"
    if _any(path, f"fold_*/{CHECKPOINTS}"):
        return "folds without plans.json and dataset.json; copy both from the folder that nnU-Net trained in"
    return "none; give the folder TRAINER__PLANS__CONFIGURATION that nnU-Net wrote into nnUNet_results"


def unfinished(path: Path, checkpoint: str) -> str:
    """What to do about a trained folder none of whose folds has the file `checkpoint`; names the files that are there.

    Args:
        path: the trained folder.
        checkpoint: the name of the file that was looked for.
    """
    found = sorted({file.name for file in path.glob(f"fold_*/{CHECKPOINTS}")} - {checkpoint})
    if not found:
        return "found none; train it, or give another folder"
    folds = sorted({file.parent.name for file in path.glob(f"fold_*/{found[0]}")})
    ended = "" if checkpoint != "checkpoint_final.pth" else ", whose training has not ended,"
    return f"found {found[0]} alone in {', '.join(folds)}{ended}; to take that, say --checkpoint {found[0]}"


def _v1(what: str) -> str:
    return (
        f"{what} of nnU-Net v1, whose plans cannot be read; train it with nnU-Net v2, or export its network as .onnx "
        "and give that by network.file in a spec"
    )


def _results(path: Path) -> str:
    return f"give its results, nnUNet_results/{path.name}/TRAINER__PLANS__CONFIGURATION"


def _any(path: Path, *patterns: str) -> bool:
    return any(True for pattern in patterns for _ in _first(path, pattern))


def _first(path: Path, pattern: str) -> Iterator[Path]:
    found = next(path.glob(pattern), None)
    return iter(() if found is None else (found,))


def _listed(folders: Sequence[Path]) -> str:
    more = len(folders) - SHOWN
    return ", ".join(folder.name for folder in folders[:SHOWN]) + (f" and {more} more" if more > 0 else "")
