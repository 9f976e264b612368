"""``python -m moesim``."""

from moesim.cli.app import main

main()
