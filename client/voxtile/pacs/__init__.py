"""Fetches scans from a PACS and stores objects in it, by DICOMweb and by DIMSE; knows nothing of what is in them."""
