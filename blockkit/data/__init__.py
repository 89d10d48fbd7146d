"""Phantoms, scans and files."""
