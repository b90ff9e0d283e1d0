"""The listener: a DICOM node that takes series, segments each once it is complete, and sends the result to a PACS."""
