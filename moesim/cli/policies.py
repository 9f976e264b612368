"""``moesim policies``: what can be named in a scenario, and with which parameters."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.errors import InputError
from moesim.registry import KINDS


def command(
    kind: Annotated[str | None, typer.Argument(help="Only this kind, for example placement.")] = None,
    json: bool = JSON_OPTION,
) -> None:
    """Registered policies, their parameters and defaults."""
    _import_registries()
    if kind is not None and kind not in KINDS:
        raise InputError.at("kind", kind, ", ".join(sorted(KINDS)))
    rows: list[dict[str, Any]] = [
        {"kind": name, "name": policy, "summary": _summary(cls), "parameters": _parameters(cls)}
        for name in sorted(KINDS)
        if kind in (None, name)
        for policy, cls in KINDS[name].items()
    ]
    if json:
        emit_json(envelope("policies", rows=rows))
        return
    table(
        "Registered policies",
        ["kind", "name", "what it does", "parameters"],
        [[r["kind"], r["name"], r["summary"], _shown(r["parameters"])] for r in rows],
    )


def _import_registries() -> None:
    import moesim.memory.caches  # noqa: PLC0415
    import moesim.network.collectives.base  # noqa: PLC0415
    import moesim.network.cores.base  # noqa: PLC0415
    import moesim.network.exchanges.base  # noqa: PLC0415
    import moesim.offload  # noqa: PLC0415
    import moesim.placement.engine_files  # noqa: PLC0415
    import moesim.placement.registry  # noqa: PLC0415
    import moesim.placement.split_registry  # noqa: PLC0415
    import moesim.serving.policies  # noqa: PLC0415
    import moesim.steps.overlap  # noqa: PLC0415
    import moesim.traces.formats  # noqa: PLC0415
    import moesim.traces.generators  # noqa: PLC0415
    import moesim.traces.transforms  # noqa: PLC0415
    import moesim.training.schedules.base  # noqa: F401, PLC0415


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").splitlines()[0].replace("``", "")


def _parameters(cls: Any) -> dict[str, Any]:
    return {
        f.name: _default(f.default)
        for f in (dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ())
        if f.init and not f.name.startswith("_")
    }


def _default(value: Any) -> Any:
    """Default of a field, None without one; also where pydantic describes it."""
    if hasattr(value, "is_required"):
        return None if value.is_required() else value.default
    return None if value is dataclasses.MISSING else value


def _shown(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in parameters.items())
