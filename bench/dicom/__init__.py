"""`python -m bench.dicom`: reading a CT from DICOM and writing objects about a mask, beside other programs."""
