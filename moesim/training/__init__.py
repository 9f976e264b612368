"""A training step: passes of chunks, pipeline schedules, states and their memory, and what they cost."""
