"""Distributions of prompt and answer lengths. One small file each."""
