"""Pure functions from what was recorded to numbers."""
