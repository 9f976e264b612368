"""Batching policies: what an iteration may hold. One small file each."""
