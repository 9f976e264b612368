"""``moesim calibrate``: measure this machine, fit, import public tables, check the fits."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

SUBCOMMANDS: dict[str, str] = {
    "measure": "Time kernels on the machine at hand (needs torch).",
    "fit": "Fit a device's measurements; write calibration/fits/DEVICE.yaml.",
    "import": "Fit public measured tables of GPUs (needs the tables extra).",
    "transfer": "Measure what moving fits to an unmeasured device costs.",
    "steps": "Predicted against measured wall time of whole models.",
    "check": "Predicted against measured on rows that no fit saw.",
}
"""Every subcommand and its one-line help, in the order of the work."""


class _Subcommands(TyperGroup):
    """Imports the module of a subcommand when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of :data:`SUBCOMMANDS`."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imported command, or None."""
        if cmd_name not in SUBCOMMANDS:
            return None
        module = importlib.import_module(f"moesim.cli.calibrate_{cmd_name}")
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        run = getattr(module, cmd_name, None) or module.command
        single.command(name=cmd_name, help=SUBCOMMANDS[cmd_name])(run)
        return get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Help table without importing any subcommand."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


app = typer.Typer(
    cls=_Subcommands,
    help="Measure, fit and check operation times.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def calibrate() -> None:
    """Measure, fit and check operation times."""
