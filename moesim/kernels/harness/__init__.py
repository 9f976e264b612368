"""Profiling harness: times the operations moesim knows on the machine it runs on.

Needs Python, torch and numpy only, and nothing of the rest of moesim: the folder may be copied to a
target and run there as ``python -m harness --minutes 8 --out DIR``. Each family becomes one CSV file
with its provenance on top; a later run continues where an earlier one stopped.
"""
