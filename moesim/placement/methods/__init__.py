"""Placement methods, one file each; importing one registers it."""
