"""The page of certificate.json. A test compares its keys with those of a certificate that was just made."""

from __future__ import annotations

from docs.generate.markdown import code, table
from voxtile_build.certificate.certificate import VERSION

INTRODUCTION = f"""\
# certificate.json

Each engine of a model has a certificate beside its files: `NAME_ENGINE/VERSION/certificate.json`. The build runs the
same tiles and scans through the network in fp32 PyTorch (the reference) and through the engine, and writes down how
far they differ. An engine that misses a limit is not published. The file has schema version {VERSION}. It holds no
dates and no times, so that its digest is a digest of what was proven
([decision 8](../decisions/0008-what-a-certificate-holds.md)). Dates and times stand in `build.json`.

`certificate.md` says the same for people, with pictures. The card holds the file's SHA-256 digest;
`voxtile-build verify` measures again and compares."""

TOP = {
    "schema_version": "the version of this form",
    "model": "the public name of the model",
    "version": "the version folder of the entry",
    "engine": "the engine that was measured",
    "precision": "the arithmetic that the engine computes in",
    "device": "the device that measured",
    "serves_on": "the kind of device that a server runs the engine on, `cpu` or `gpu`; if it is another one than in "
    "`device`, the engine is not certified there until `voxtile-build verify` has run",
    "accepted": "whether every limit was met",
    "acceptance": "the limits: what the spec asks for, or the defaults for the precision",
    "metrics": "the worst values over all samples, which the limits are compared with",
    "reference_error": "the same metrics of fp32 PyTorch against float64; only if they could decide",
    "unseen_labels": "labels of which the scans show fewer than 100 voxels, with those voxels: Dice proves nothing",
    "student_of": "only if the network was distilled: its teacher, and how far the two agree, as in the card; all "
    "other figures compare the engine with the student",
    "inputs": "only if the spec names scans: what they hold in each channel, as in the card",
    "tiles": "what was measured on each tile, at each batch size",
    "scans": "what was measured on each whole scan",
    "precision_facts": "what the engine itself says of its arithmetic; with `auto`, the path of the search",
    "warnings": "what the user should know, in sentences",
    "samples": "the file with tiles, a scan and the reference's scores, for measuring again without PyTorch",
    "hashes": "SHA-256 digests of what the engine was made of, and of its files",
    "versions": "the versions of the libraries that took part",
    "machine": "the machine that measured",
}
ACCEPTANCE = {
    "max_abs_error": "the largest error of a probability; `null` if there is no limit",
    "max_logit_error": "the largest error of a logit, as a share of the range of all; `null` if there is no limit",
    "max_score_error": "the largest root mean square error of all scores, as a share of their spread",
    "allow_unseen_labels": "whether the spec allows labels that the scans do not show",
    "min_dice": "the smallest Dice of a label between the engine and the reference",
    "max_changed": "the largest share of voxels whose label changes",
}
METRICS = {
    "max_abs_error": "the largest error of a probability",
    "mean_abs_error": "the largest mean error of a probability",
    "dice_min": "the smallest Dice of any label in any scan; in a label below 1000 voxels, up to 10 changed voxels do "
    "not count",
    "changed_fraction": "the largest share of voxels of a scan whose label changes",
    "score_error": "the root mean square error of all scores, as a share of their spread: of all tiles together or of "
    "one scan; 1 or more if the scores are always the same",
    "max_logit_error": "the largest error of a logit, as a share of the range of all logits; only if scores are logits",
}
MEASURED = {
    "max_abs_error": "the largest error of a probability",
    "mean_abs_error": "the mean error of a probability",
    "max_abs_error_stored": "the largest error of a score as it is sent",
    "rms_error": "the root mean square error of all scores as they are sent, beyond one step of their type",
    "spread": "the standard deviation of the reference's scores over the voxels",
    "logits": "the smallest and the largest logit of the reference; only if scores are logits",
    "near_boundary_voxels": "voxels that an error of this size could change: they lie at the border of two labels",
    "dice": "Dice of each label; `null` if neither mask has a voxel of it",
    "hausdorff_95_mm": "the 95 % Hausdorff distance of each label in millimetres; `null` if a mask has no voxel of it",
    "voxels": "voxels of each label in the reference's mask",
    "changed_by_label": "voxels in which the two masks of a label differ",
    "changed_voxels": "voxels whose label changes",
    "changed_fraction": "the share of voxels whose label changes",
}
TILE = {
    "name": "which tile",
    "batch": "how many tiles were in the run",
    "constant": "true for a tile of one value, which is reported and not judged",
    **MEASURED,
}
SCAN = {
    "name": "the scan's file name, or the name of the generated scan",
    "shape": "its voxels along each axis, after the channel",
    "spacing": "its voxel size in millimetres",
    "sha256": "the digest of its voxels",
    "batch": "how many tiles were in a run",
    **MEASURED,
}
SAMPLES = {"file": "its name, in the same folder", "sha256": "its digest"}
HASHES = {
    "weights": "the weights that the network was built with",
    "onnx": "the ONNX file that all engines were built from",
    "files": "the engine's files, by name",
}
DEVICE = {"kind": "`cpu` or `gpu`", "name": "its name"}
MACHINE = {
    "cpu": "the CPU's name",
    "architecture": "the instruction set",
    "cores": "how many cores the build could use",
}
TABLES = {
    "": TOP,
    "device": DEVICE,
    "acceptance": ACCEPTANCE,
    "metrics": METRICS,
    "tiles": TILE,
    "scans": SCAN,
    "samples": SAMPLES,
    "hashes": HASHES,
    "machine": MACHINE,
}
"""The keys of each object and their meanings, by the key that holds the object; "" for the outermost one."""

CLOSING = """\
The entry that averages the folds of a model (`NAME_mean_ENGINE`) has a shorter certificate. Its graph is compared with
a mean in float64. Of the tables above only `max_abs_error` is in `acceptance` and `metrics`."""


def page() -> str:
    """Returns the page as Markdown."""
    blocks = [f"## {code(key) or 'The object'}\n\n{_table(meanings)}" for key, meanings in TABLES.items()]
    return "\n\n".join([INTRODUCTION, *blocks, CLOSING]) + "\n"


def _table(meanings: dict[str, str]) -> str:
    return table(("key", "meaning"), [(code(key), meaning) for key, meaning in meanings.items()])
