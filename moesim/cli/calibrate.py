"""``moesim calibrate``: measure this machine, fit, import public tables, check the fits."""

from __future__ import annotations

import typer

from moesim.cli.calibrate_check import check
from moesim.cli.calibrate_fit import fit
from moesim.cli.calibrate_import import import_tables
from moesim.cli.calibrate_measure import measure
from moesim.cli.calibrate_network import network
from moesim.cli.calibrate_steps import steps
from moesim.cli.calibrate_transfer import transfer

app = typer.Typer(
    help="Measure, fit and check operation times.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("measure")(measure)
app.command("fit")(fit)
app.command("import")(import_tables)
app.command("transfer")(transfer)
app.command("check")(check)
app.command("steps")(steps)
app.command("network")(network)
