"""``moesim explain``: value, unit, origin and evidence of one field of a resolved scenario."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.cli.run import SetOption
from moesim.errors import InputError, Problem, did_you_mean


def command(
    path: Annotated[str, typer.Argument(help="Dotted path, for example cluster.node.device.launch_s.")],
    scenario: Annotated[str, typer.Option(help="Scenario file, or the name of a shipped one.")],
    sets: SetOption = None,
    json: bool = JSON_OPTION,
) -> None:
    """Where one value (or every value below a path) of a resolved scenario comes from."""
    from moesim.hardware.audit import field_origins  # noqa: PLC0415
    from moesim.scenario.resolve import resolve  # noqa: PLC0415

    resolved = resolve(scenario, sets or [])
    values = resolved.scenario.model_dump(mode="json") | {"model": resolved.tree.data["model"]}
    origins = {f"cluster.{o.path}": o for o in field_origins(resolved.tree.sub("cluster"))}
    rows = []
    for name, value in _leaves(values, ""):
        if not (name == path or name.startswith(f"{path}.")) or ".sources." in name:
            continue
        keys = tuple(int(k) if k.isdigit() else k for k in name.split("."))
        origin = origins.get(name)
        written = _written(resolved.tree.data, keys)
        row = {
            "path": name,
            "value": value,
            "set_at": resolved.tree.where(keys) if written else "class default",
        }
        row |= {k: v for k, v in asdict(origin).items() if k in {"unit", "grade", "source"}} if origin else {}
        rows.append(row)
    if not rows:
        known = [name for name, _ in _leaves(values, "")]
        raise InputError([Problem(path, f"no such field{did_you_mean(path, known)}")])
    if json:
        emit_json(envelope("explain", rows=rows))
        return
    columns = ["path", "value", "unit", "set_at", "grade", "source"]
    table(f"{path} in {resolved.scenario.name}", columns, [[row.get(c, "") for c in columns] for row in rows])


def _leaves(node: Any, prefix: str) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [leaf for k, v in node.items() for leaf in _leaves(v, f"{prefix}.{k}" if prefix else str(k))]
    return [(prefix, node)]


def _written(data: Any, keys: tuple[str | int, ...]) -> bool:
    """Whether the value stands in the resolved tree, as opposed to a default of the schema."""
    for key in keys:
        if isinstance(data, dict) and str(key) in data:
            data = data[str(key)]
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return False
    return True
