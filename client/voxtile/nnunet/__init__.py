"""nnU-Net v2's own preprocessing, export and post-processing, without torch and without nnunetv2."""

from voxtile.nnunet.exporting import LabelExporter, export_labels, export_probabilities
from voxtile.nnunet.postprocessing import postprocess
from voxtile.nnunet.preprocessing import GridProperties, NnunetPlan, Preprocessed, preprocess
from voxtile.nnunet.resampling import resample, zoom_matrix

__all__ = [
    "GridProperties",
    "LabelExporter",
    "NnunetPlan",
    "Preprocessed",
    "export_labels",
    "export_probabilities",
    "postprocess",
    "preprocess",
    "resample",
    "zoom_matrix",
]
