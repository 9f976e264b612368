"""``moesim placement``: what replicas, rebalancing and run-time splits are worth."""

from __future__ import annotations

import typer

from moesim.cli.placement_rebalance import rebalance
from moesim.cli.placement_replicas import replicas
from moesim.cli.placement_splits import splits

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
app.command("replicas")(replicas)
app.command("rebalance")(rebalance)
app.command("splits")(splits)
