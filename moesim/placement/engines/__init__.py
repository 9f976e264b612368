"""Placements in the words of serving engines, one file each; importing one registers it."""
