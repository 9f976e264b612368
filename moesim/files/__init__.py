"""Finding, reading, checking and writing files: the only room that touches the disk for data.

Nothing read here can execute code, and nothing is left half-written.
"""

from moesim.files.check import problems_of, validated
from moesim.files.find import data_folders, find, listed
from moesim.files.tree import Tree, read_tree, set_value
from moesim.files.write import to_json, write_bytes, write_chunks, write_gzip, write_json, write_text

__all__ = [
    "Tree",
    "data_folders",
    "find",
    "listed",
    "problems_of",
    "read_tree",
    "set_value",
    "to_json",
    "validated",
    "write_bytes",
    "write_chunks",
    "write_gzip",
    "write_json",
    "write_text",
]
