"""Writes what a segmentation found as DICOM objects: SEG, structured report, picture and RTSTRUCT."""
