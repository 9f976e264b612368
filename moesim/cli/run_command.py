"""``moesim run --from "vllm serve ..."``: a launch command instead of a scenario file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from moesim.cli.output import note
from moesim.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesim.scenario.resolve import Resolved

FROM_OPTION = typer.Option(
    "--from", metavar="COMMAND", help="Launch command of vLLM, SGLang or TensorRT-LLM instead of a scenario."
)
DEVICE_OPTION = typer.Option(help="With --from: the devices it runs on, as h200_sxm.")
VERSION_OPTION = typer.Option("--engine-version", help="With --from: the engine's release.")


def resolved_from(
    scenario: str | None, command: str | None, device: str | None, version: str, overrides: Sequence[str]
) -> Resolved:
    """Scenario of a file or of a launch command, with overrides.

    Raises
    ------
    InputError
        Neither is given, or both; or what is wrong with the one given.
    """
    from moesim.scenario.from_command import scenario_of_command  # noqa: PLC0415
    from moesim.scenario.resolve import resolve, resolve_tree  # noqa: PLC0415

    if (scenario is None) == (command is None):
        raise InputError([Problem("", "accepted: one of SCENARIO and --from COMMAND")])
    if command is None:
        assert scenario is not None  # one of the two is there
        if device is not None or version:
            raise InputError(
                [Problem("--device", "goes with --from; a scenario names its cluster and engine")]
            )
        return resolve(scenario, overrides)
    if device is None:
        raise InputError([Problem("--device", "missing; accepted: a device profile, as h200_sxm")])
    tree, warnings = scenario_of_command(command, device, version)
    for warning in warnings:
        note(f"note: {warning}")
    return resolve_tree(tree, overrides)
