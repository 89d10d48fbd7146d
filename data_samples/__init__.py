"""The sample files that come with blockkit: see README.md beside this file."""
