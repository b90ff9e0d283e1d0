"""nnU-Net v2's own preprocessing, export and post-processing, without torch and without nnunetv2."""

from voxtile.chains.nnunet.exporting import LabelExporter, export_labels, export_probabilities
from voxtile.chains.nnunet.postprocessing import postprocess
from voxtile.chains.nnunet.preprocessing import GridProperties, NnunetPlan, Preprocessed, preprocess
from voxtile.chains.nnunet.resampling import resample, zoom_matrix

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
