"""Pipeline schedules, one file each; importing one registers it."""
