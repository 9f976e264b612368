"""Arrival processes of an open loop. One small file each."""
