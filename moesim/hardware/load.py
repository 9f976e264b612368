"""Profiles by name: files that name one another become one raw tree, then a validated description.

Two steps on purpose. :func:`resolve` and :func:`resolve_cluster` only inline names, so that a
scenario can lay its overrides over the raw tree; :func:`load_device`, :func:`load_node` and
:func:`load_cluster` also validate. Positions (``file:line``) survive both.

At a place where a profile is wanted one may write a name or path, a mapping
``{profile: NAME, ...overrides}``, or the whole description. A node stands for the cluster of that
one node, and a name that ends in another number of devices than any file's (``h100_x512``) for the
largest described machine of that name with as many nodes as it takes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from moesim.errors import InputError, Problem, did_you_mean
from moesim.files import Tree, find, listed, read_tree, validated
from moesim.hardware.check import own_source_problems
from moesim.hardware.schema import Cluster, Device, Node, Sourced, source_in

ROOM = "hardware_profiles"
SUFFIXES = (".yaml", ".yml", ".json")

Kind: TypeAlias = Literal["device", "node", "cluster"]
Keys: TypeAlias = tuple[str | int, ...]
D = TypeVar("D", bound=Sourced)

REFERENCES: dict[Kind, dict[Keys, Kind]] = {
    "cluster": {("node",): "node"},
    "node": {("device",): "device", ("host", "cpu"): "device", ("pim",): "device"},
    "device": {},
}
"""Places inside a description where another profile may be named."""

MODELS: dict[Kind, type[Sourced]] = {"device": Device, "node": Node, "cluster": Cluster}

UNDESCRIBED_FABRIC = {"kind": "rail_optimised", "latency_s": 5.0e-7}
UNDESCRIBED_SOURCE = "assumed: not described; non-blocking rail-optimised fabric, 0.5 us a switch"
"""Network of a cluster whose description leaves ``scale_out`` out."""


def profile_names() -> list[str]:
    """Names of all profiles that can be found, sorted."""
    return listed(ROOM, suffixes=SUFFIXES)


def load_device(profile: str | Tree) -> Device:
    """Device by profile name, path or raw tree.

    Raises
    ------
    InputError
        Every problem of every file involved, with file and line.
    """
    return _loaded(Device, profile, "device")


def load_node(profile: str | Tree) -> Node:
    """Node by profile name, path or raw tree; errors as :func:`load_device`."""
    return _loaded(Node, profile, "node")


def load_cluster(profile: str | Tree) -> Cluster:
    """Cluster by profile name (of a cluster or a node), path or raw tree; errors as :func:`load_device`."""
    return _loaded(Cluster, profile, "cluster")


def resolve_cluster(tree: Tree, at: Keys = ("cluster",)) -> Tree:
    """``tree`` with the cluster described at the keys ``at`` fully inlined, not validated.

    Raises
    ------
    InputError
        A profile that is not found, has the wrong kind, another name than its file, an unsourced
        number, or refers to itself.
    """
    part = _at(tree, at)
    if part is None:
        return tree
    inlined = resolve(part, "cluster", field=".".join(map(str, at)))
    return _replaced(tree, at, inlined)


def resolve(tree: Tree, kind: Kind, *, field: str = "") -> Tree:
    """Raw tree of one description with every profile name inlined; errors as :func:`resolve_cluster`."""
    resolver = _Resolver()
    inlined = resolver.place(tree, kind, field)
    if resolver.problems:
        raise InputError(resolver.problems, source=tree.source)
    return inlined


@dataclass(frozen=True)
class Profile:
    """A profile as its files say it, not validated.

    Attributes
    ----------
    tree : Tree
        Description with every profile name inlined.
    kind : str
        ``device``, ``node`` or ``cluster``.
    problems : tuple of Problem
        What is wrong with the files so far.
    is_complete : bool
        Every profile it names was found.
    """

    tree: Tree
    kind: Kind
    problems: tuple[Problem, ...]
    is_complete: bool


def read_profile(name: str) -> Profile:
    """Profile by name or path; wrong files give problems, not an exception."""
    resolver = _Resolver()
    tree, kind = resolver.named(name, "", "", ())
    return Profile(tree, kind, tuple(resolver.problems), not resolver.is_broken)


def _loaded(model: type[D], profile: str | Tree, kind: Kind) -> D:
    tree = Tree(profile) if isinstance(profile, str) else profile
    resolver = _Resolver()
    inlined = resolver.place(tree, kind, "")
    problems = list(resolver.problems)
    source = inlined.source or tree.source
    if resolver.is_broken:
        raise InputError(problems, source=source)
    try:
        described = validated(model, inlined)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems, source=source)
    return described


@dataclass
class _Resolver:
    """Collects problems instead of stopping at the first; ``is_broken`` when a profile is absent."""

    problems: list[Problem] = field(default_factory=list)
    is_broken: bool = False

    def place(self, tree: Tree, kind: Kind, path: str, stack: tuple[str, ...] = ()) -> Tree:
        """Inlined description at a place where ``kind`` is wanted."""
        data = tree.data
        if isinstance(data, str):
            return self._fitted(*self.named(data, path, tree.where(()), stack), kind, data, path, tree)
        if not isinstance(data, dict):
            self._fail(path, f"got {data!r}; accepted: a {kind} profile name or a mapping", tree.where(()))
            return tree
        if "profile" not in data:
            return _completed(self._inner(tree, kind, path, stack), kind)
        name = data["profile"]
        where = tree.where(("profile",))
        if not isinstance(name, str):
            self._fail(f"{path}.profile".lstrip("."), f"got {name!r}; accepted: a profile name", where)
            return tree
        base = self._fitted(*self.named(name, path, where, stack), kind, name, path, tree)
        return self._overlaid(base, _without(tree, ("profile",)), kind, path, stack)

    def named(self, name: str, path: str, where: str, stack: tuple[str, ...]) -> tuple[Tree, Kind]:
        """Inlined content of a profile file and what it describes."""
        if name in stack:
            chain = " -> ".join((*stack[stack.index(name) :], name))
            self._fail(path, f"profiles refer to one another in a circle: {chain}", where)
            return Tree({}), "device"
        try:
            file = find(name, ROOM, field=path, suffixes=SUFFIXES, where=where)
            tree = copy.deepcopy(_read(file, file.stat().st_mtime_ns))
        except InputError as error:
            base = _of_another_size(name)
            if base is not None:
                return self._sized(base, name, path, where), "cluster"
            self.problems += error.problems
            self.is_broken = True
            return Tree({}), "device"
        if not isinstance(tree.data, dict):
            self._fail("", "not a profile: accepted: a mapping of fields", file.name)
            return Tree({}), "device"
        return self._of_file(tree, file, (*stack, name))

    def _sized(self, base: str, name: str, path: str, where: str) -> Tree:
        """The machine ``base`` with as many nodes more or fewer as the numbers in both names say."""
        found, kind = self.named(base, path, where, ())
        tree = _cluster_of(found) if kind == "node" else found
        size, wanted = int(base.rpartition("_x")[2]), int(name.rpartition("_x")[2])
        num_nodes, rest = divmod(tree.data.get("num_nodes", 1) * wanted, size)
        if rest or not wanted:
            hint = did_you_mean(name, profile_names())
            self._fail(path, f"got {name!r}; accepted: whole nodes, as {base} has{hint}", where)
            return tree
        source = f"assumed: {base}, with as many nodes as the name {name} asks for"
        changes: dict[str, Any] = {"name": name, "num_nodes": num_nodes}
        changes["sources"] = tree.data.get("sources", {}) | {"num_nodes": source}
        if "scale_up_domain_nodes" in tree.data:
            changes["scale_up_domain_nodes"] = min(num_nodes, tree.data["scale_up_domain_nodes"])
        return Tree(tree.data | changes, tree.positions, tree.source)

    def _of_file(self, tree: Tree, file: Path, stack: tuple[str, ...]) -> tuple[Tree, Kind]:
        head = "name", "schema_version"
        self.problems += [Problem(h, "missing (required)", file.name) for h in head if h not in tree.data]
        given = tree.data.get("name", file.stem)
        if given != file.stem:
            message = f"got {given!r}; accepted: the name of the file, {file.stem!r}"
            self.problems.append(Problem("name", message, tree.where(("name",))))
        if "profile" in tree.data:
            base_name = tree.data["profile"]
            base, kind = self.named(str(base_name), "profile", tree.where(("profile",)), stack)
            over = _without(tree, ("profile",))
            self.problems += own_source_problems(over, tuple(REFERENCES[kind]), base=base.data)
            result = self._overlaid(base, over, kind, "", stack)
        else:
            kind = _kind_of(tree.data)
            self.problems += own_source_problems(tree, tuple(REFERENCES[kind]))
            result = self._inner(tree, kind, "", stack)
        result.source = tree.source
        return result, kind

    def _fitted(self, found: Tree, kind: Kind, wanted: Kind, name: str, path: str, tree: Tree) -> Tree:
        if self.is_broken or kind == wanted:
            return found
        if kind == "node" and wanted == "cluster":
            return _cluster_of(found)
        accepted = "a cluster or node profile" if wanted == "cluster" else f"a {wanted} profile"
        self._fail(path, f"{name!r} describes a {kind}; accepted: {accepted}", tree.where(()))
        return found

    def _inner(self, tree: Tree, kind: Kind, path: str, stack: tuple[str, ...]) -> Tree:
        """``tree`` with the profiles named inside it inlined."""
        for keys, inner_kind in REFERENCES[kind].items():
            part = _at(tree, keys)
            if part is not None and part.data is not None:
                inner = self.place(part, inner_kind, _joined(path, keys), stack)
                tree = _replaced(tree, keys, inner)
        return tree

    def _overlaid(self, base: Tree, over: Tree, kind: Kind, path: str, stack: tuple[str, ...]) -> Tree:
        """``base`` with overrides; a profile named in the overrides replaces the one below it."""
        if self.is_broken:
            return base
        for keys, inner_kind in REFERENCES[kind].items():
            part = _at(over, keys)
            if part is None:
                continue
            over = _without(over, keys)
            below = _at(base, keys)
            is_patch = isinstance(part.data, dict) and "profile" not in part.data
            if is_patch and below is not None and isinstance(below.data, dict):
                inner = self._overlaid(below, part, inner_kind, _joined(path, keys), stack)
            elif part.data is None:
                inner = part
            else:
                inner = self.place(part, inner_kind, _joined(path, keys), stack)
            base = _replaced(base, keys, inner)
        return _with_sources(base.merged(over), over)

    def _fail(self, path: str, message: str, where: str) -> None:
        self.problems.append(Problem(path, message, where))
        self.is_broken = True


@lru_cache(maxsize=512)
def _read(file: Path, mtime_ns: int) -> Tree:
    """Content of a profile file, parsed once while the file stays as it is."""
    return read_tree(file)


def _of_another_size(name: str) -> str | None:
    """The largest described machine whose name differs from ``name`` in its last number only."""
    stem, separator, wanted = name.rpartition("_x")
    if not separator or not wanted.isdigit():
        return None
    sizes = [known.rpartition("_x") for known in profile_names()]
    own = [int(size) for known, _, size in sizes if known == stem and size.isdigit()]
    return f"{stem}_x{max(own)}" if own else None


def _kind_of(data: dict[str, Any]) -> Kind:
    if "node" in data or "num_nodes" in data:
        return "cluster"
    return "node" if "device" in data or "num_devices" in data else "device"


def _cluster_of(node: Tree) -> Tree:
    """Cluster of one node."""
    positions: dict[Keys, str] = {("node", *keys): place for keys, place in node.positions.items()}
    data = {"schema_version": 1, "name": node.data.get("name", "unnamed"), "node": node.data}
    data |= {"num_nodes": 1, "sources": {"num_nodes": "assumed: one node where a cluster is wanted"}}
    return _completed(Tree(data, positions, node.source), "cluster")


def _completed(tree: Tree, kind: Kind) -> Tree:
    """Cluster with a network, where its description leaves it out."""
    if kind != "cluster" or "scale_out" in tree.data or "node" not in tree.data:
        return tree
    has_nics = isinstance(tree.data["node"], dict) and tree.data["node"].get("num_nics")
    fabric = UNDESCRIBED_FABRIC if has_nics else {"kind": "none"}
    sources = tree.data.get("sources", {})
    if isinstance(sources, dict):
        sources = {"scale_out": UNDESCRIBED_SOURCE} | sources
    return Tree(tree.data | {"scale_out": dict(fabric), "sources": sources}, tree.positions, tree.source)


def _with_sources(merged: Tree, over: Tree) -> Tree:
    """Every overridden number says where it was set, unless the overrides name its source themselves."""
    own = over.data.get("sources") if isinstance(over.data, dict) else None
    own = own if isinstance(own, dict) else {}
    numbers = [
        (keys, ".".join(map(str, keys)))
        for keys, value in over.leaves()
        if keys[0] not in {"sources", "schema_version"} and isinstance(value, int | float)
    ]
    if not numbers or not isinstance(merged.data.get("sources", {}), dict):
        return merged  # the schema tells
    sources = dict(merged.data.get("sources", {}))
    for keys, path in numbers:
        sources[path] = source_in(own, path) or f"assumed: set at {over.where(keys) or 'an override'}"
    merged.data["sources"] = sources
    return merged


def _joined(path: str, keys: Keys) -> str:
    return ".".join(filter(None, (path, *map(str, keys))))


def _at(tree: Tree, keys: Keys) -> Tree | None:
    """Part of ``tree`` below ``keys``, or None where there is none."""
    data = tree.data
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    depth = len(keys)
    positions = {k[depth:]: place for k, place in tree.positions.items() if k[:depth] == keys}
    positions.setdefault((), tree.where(keys))
    return Tree(data, positions, tree.source)


def _without(tree: Tree, keys: Keys) -> Tree:
    """Copy of ``tree`` that lacks the value at ``keys``."""

    def cut(data: Any, rest: Keys) -> Any:
        if len(rest) == 1:
            return {k: v for k, v in data.items() if k != rest[0]}
        return {k: cut(v, rest[1:]) if k == rest[0] else v for k, v in data.items()}

    positions = {k: place for k, place in tree.positions.items() if k[: len(keys)] != keys}
    return Tree(cut(tree.data, keys), positions, tree.source)


def _replaced(tree: Tree, keys: Keys, part: Tree) -> Tree:
    """Copy of ``tree`` with ``part`` at ``keys`` instead of what was there."""

    def put(data: Any, rest: Keys) -> Any:
        if not rest:
            return part.data
        inner = data if isinstance(data, dict) else {}
        return inner | {rest[0]: put(inner.get(rest[0]), rest[1:])}

    positions = {k: place for k, place in tree.positions.items() if k[: len(keys)] != keys}
    positions |= {(*keys, *k): place for k, place in part.positions.items()}
    return Tree(put(tree.data, keys), positions, tree.source)
