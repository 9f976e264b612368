"""Puts this folder on the import path, so that any test can import the shared ``strategies``."""
