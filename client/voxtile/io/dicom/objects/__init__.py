"""One DICOM object: its file, its header, its frames and their pixels."""
