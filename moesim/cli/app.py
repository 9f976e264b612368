"""The ``moesim`` command: a lazy group, so that ``--help`` imports no simulator code.

Each command lives in the module of its name and is imported only when it is called. A module
exposes ``command`` (a typer callback) or ``app`` (a typer group).
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from moesim import __version__
from moesim.errors import MoesimError

COMMANDS: dict[str, str] = {
    "demo": "First result: two models, three expert placements each, a report.",
    "run": "Simulate one scenario.",
    "whatif": "Vary scenario fields and tabulate what changes.",
    "train": "Search over plans, memory, work, efficiency leverage and cost of training.",
    "place": "Place the experts of a routing trace on ranks, with a proven bound.",
    "offload": "Bits of experts, bounds of streamed weights, models in turn.",
    "placement": "What replicas, rebalancing and run-time splits are worth.",
    "capture": "Capture the routing of a real model (needs the capture extra).",
    "trace": "Convert, show, measure, fit, generate, transform and slice routing traces.",
    "profile": "List, show and check hardware profiles.",
    "model": "List and show models.",
    "policies": "List the registered policies and their parameters.",
    "explain": "Where one value of a resolved scenario comes from.",
    "calibrate": "Measure, fit and check operation times.",
    "validate": "Published claims and measured runs beside ours.",
    "report": "Write the HTML report of a finished run.",
}
"""Every command and its one-line help, in the order a newcomer meets them."""


class LazyGroup(TyperGroup):
    """Knows its commands by name; imports a command's module when it is needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of :data:`COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imported command, or a stub with its help line while only help is printed."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"moesim.cli.{cmd_name}")
        return _built(cmd_name, module)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Help table without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error that is the user's becomes lines on stderr and its exit code."""
        try:
            return super().invoke(ctx)
        except MoesimError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            # the reader of a pipe left (``moesim ... | head``); nothing to say to anybody
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
            raise typer.Exit(0) from None


def _built(name: str, module: Any) -> Any:
    if hasattr(module, "app"):
        group: Any = get_command(module.app)
        group.name = name
        for command in group.commands.values():
            # whole: what is derived from the help is cut in the middle of a sentence
            command.short_help = (command.help or "").partition("\n")[0]
        return group
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name=name, help=COMMANDS[name])(module.command)
    return get_command(single)


app = typer.Typer(
    name="moesim",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"moesim {__version__}")
        raise typer.Exit


@app.callback()
def moesim(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Simulate Mixture-of-Experts models on described hardware.

    Values are merged as: class default < profile < scenario file < --set.

    Exit codes: 0 done, 1 defect of moesim, 2 wrong usage, 3 wrong input, 4 infeasible, 5 check failed.
    """


def main() -> None:
    """Entry point of the console script."""
    # matrices here are small: threads of numpy's linear algebra double the processor time and shorten nothing
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    app()
