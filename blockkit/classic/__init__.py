"""Compressed sensing, the baseline."""
