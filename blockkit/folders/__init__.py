"""A folder of scans, reconstructed by one process or many, and again after any stop."""
