"""``moesim offload``: bits of experts, batches, models in turn, and bounds of streamed weights."""

from __future__ import annotations

import typer

from moesim.cli.offload_batches import batches
from moesim.cli.offload_bits import bits
from moesim.cli.offload_grouped import grouped
from moesim.cli.offload_stream import stream

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
app.command("batches")(batches)
app.command("bits")(bits)
app.command("stream")(stream)
app.command("grouped")(grouped)
