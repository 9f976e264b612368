"""The one assembly room: scenario file to objects to run to result."""
