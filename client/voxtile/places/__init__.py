"""Files at addresses, `s3://`, `gs://`, `http://`: looked up, fetched and written whole. Knows nothing of scans."""
