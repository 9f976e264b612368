"""Data folders and the one search order for named files.

A name is looked up in: a path as given, each folder of ``$MOESIM_PATH``, the current folder, the
data shipped with the package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from moesim.errors import InputError, Problem, did_you_mean

PACKAGE = Path(__file__).resolve().parents[1]
SUFFIXES = (".yaml", ".yml", ".json", ".safetensors")
MOST_SHOWN = 40
"""Names that an error lists."""


def data_folders(room: str) -> list[Path]:
    """Existing folders that may hold ``room`` (``'hardware_profiles'``, ``'scenarios'``), in search order."""
    extra = [Path(p) for p in os.environ.get("MOESIM_PATH", "").split(os.pathsep) if p]
    shipped = PACKAGE / "_data" if (PACKAGE / "_data").is_dir() else PACKAGE.parent
    candidates = [*(p / room for p in extra), *extra, Path.cwd() / room, shipped / room]
    unique = dict.fromkeys(p for p in candidates if p.is_dir())
    return list(unique)


def find(
    name: str, room: str, *, field: str = "", suffixes: Sequence[str] = SUFFIXES, where: str = ""
) -> Path:
    """Path of the file called ``name``.

    Parameters
    ----------
    name : str
        A path to an existing file, or a name without suffix looked up in ``room`` and its sub-folders.
    room : str
        Data folder.
    field, where : str
        What the error points at.

    Raises
    ------
    InputError
        Nothing found: lists the folders searched and the nearest name.
    """
    given = Path(name)
    if given.is_file():
        return given
    if given.suffix in suffixes or len(given.parts) > 1:
        for parent in (PACKAGE.parent, PACKAGE / "_data"):
            if (parent / given).is_file():
                return parent / given
    for folder in data_folders(room) if given.name == name else ():
        found = [p for place in _places(folder) for s in suffixes if (p := place / (name + s)).is_file()]
        if found:
            return min(found)
    known = listed(room, suffixes=suffixes)
    searched = ", ".join(str(p) for p in data_folders(room)) or f"no folder {room!r}"
    hint = did_you_mean(name, known)
    message = f"no file {name!r}{hint}; searched: {searched}; known: {_shown(name, known)}"
    raise InputError([Problem(field, message, where)])


def listed(room: str, *, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """Names available in ``room``, sorted."""
    return sorted({path.stem for folder in data_folders(room) for path in _files(folder, suffixes)})


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    paths = (path for place in _places(folder) for path in place.iterdir())
    return sorted(p for p in paths if p.suffix in suffixes and p.is_file())


def _places(folder: Path) -> list[Path]:
    """A data folder and its direct sub-folders; what lies deeper belongs to one of them."""
    with os.scandir(folder) as entries:
        return [folder, *(folder / entry.name for entry in entries if entry.is_dir())]


def _shown(name: str, known: list[str]) -> str:
    """Names to choose from; of many, those that begin like ``name``, or only their number."""
    if len(known) <= MOST_SHOWN:
        return ", ".join(known) or "none"
    start = re.split(r"[^a-z0-9]", name.lower(), maxsplit=1)[0]
    alike = [other for other in known if start and other.startswith(start)][:MOST_SHOWN]
    rest = f"{len(known) - len(alike)} {'more' if alike else 'names'}"
    return ", ".join([*alike, rest])
