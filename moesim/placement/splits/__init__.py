"""Run-time policies that split tokens over copies, one file each; importing one registers it."""
