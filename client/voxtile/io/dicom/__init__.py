"""Reads DICOM: the objects of a folder, an archive or a file, sorted into series, as the scan that one of them is."""
