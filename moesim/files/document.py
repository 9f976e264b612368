"""Generated documents of fits: short numbers, a field a line, read in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from moesim.files.check import validated
from moesim.files.tree import read_tree
from moesim.files.write import write_text

HEAD = "# Made by `moesim calibrate`; do not edit: fit again instead.\n"

DEEPEST_LINES = 3
"""Mappings below this depth are written on one line."""

M = TypeVar("M", bound=BaseModel)


def write_document(path: Path, model: BaseModel) -> Path:
    """Write a generated document of this room, numbers to four significant digits.

    YAML in its JSON form, a field a line: a file of a hundred fits is read in milliseconds.
    """
    document = _rounded(model.model_dump(mode="json", exclude_none=True))
    return write_text(path, HEAD + _lines(document, 0) + "\n")


def read_document(model: type[M], path: Path) -> M:
    """Read what :func:`write_document` wrote, or the same in any YAML.

    Raises
    ------
    InputError
        Not such a file: every problem with its line.
    """
    try:
        body = "".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
        return model.model_validate(json.loads(body))
    except (OSError, ValueError):  # the slow reader knows lines, and says what is wrong
        return validated(model, read_tree(path))


def _lines(node: Any, depth: int) -> str:
    """JSON with the leaves of a mapping of the two upper levels on lines of their own."""
    inside, outside = " " * (depth + 1), " " * depth
    if isinstance(node, dict) and depth < DEEPEST_LINES:
        parts = [f"{inside}{json.dumps(key)}: {_lines(value, depth + 1)}" for key, value in node.items()]
        return "{\n" + ",\n".join(parts) + f"\n{outside}}}"
    if isinstance(node, list) and node and isinstance(node[0], dict):
        parts = [f"{inside}{_lines(value, depth + 1)}" for value in node]
        return "[\n" + ",\n".join(parts) + f"\n{outside}]"
    return json.dumps(node)


def _rounded(node: Any) -> Any:
    """Four significant digits: more than the fit can tell, and readable."""
    if isinstance(node, dict):
        return {key: _rounded(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_rounded(value) for value in node]
    return float(f"{node:.4g}") if isinstance(node, float) else node
