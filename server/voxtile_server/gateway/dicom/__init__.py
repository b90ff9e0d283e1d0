"""DICOM over HTTP: a series in a request, objects about it in the answer; knows nothing of how they are made."""
