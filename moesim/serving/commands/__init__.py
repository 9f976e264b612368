"""Launch commands of inference engines, read into deployments: one small file an engine."""

from moesim.serving.commands.base import Command, Reader, engine_commands, read_command

__all__ = ["Command", "Reader", "engine_commands", "read_command"]
