"""``moesim offload batches``: experts of a batch by who shares it (ExpertFlow, Read-ME)."""

from __future__ import annotations

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.cli.trace_common import TRACE, loaded


def batches(
    trace: str = TRACE,
    *,
    size: int = typer.Option(32, "--batch", min=1, help="Most sequences of a pass."),
    pool: int = typer.Option(4, min=1, help="Batches whose sequences wait together."),
    steps: int = typer.Option(16, min=1, help="Decode steps. [steps]"),
    as_json: bool = JSON_OPTION,
) -> None:
    """Distinct experts of a pass and layer by batching policy; the trace is cut into sequences."""
    import numpy as np  # noqa: PLC0415

    from moesim.errors import InputError  # noqa: PLC0415
    from moesim.memory.demand import demand_of_batches  # noqa: PLC0415
    from moesim.offload.batchers import batched_steps, batchers  # noqa: PLC0415

    found = loaded(trace)
    if found.num_tokens < size * pool:
        accepted = f"--batch times --pool of at most {found.num_tokens}, the tokens of the trace"
        raise InputError.at("--batch", f"{size} x {pool}", accepted)
    rows = []
    for name in batchers.names():
        passes = batched_steps(found, steps, size, batchers.build(name, {"pool": pool}, field="--policy"))
        demand = demand_of_batches(found, passes)
        rows.append(
            {
                "policy": name,
                "passes": len(passes),
                "tokens_per_pass": float(np.mean([len(batch) for batch in passes])),
                "experts_per_layer": float((demand.tokens > 0).sum(axis=-1).mean()),
            }
        )
    if as_json:
        emit_json(envelope("offload batches", rows=rows))
        return
    title = f"{found.info.model}: {size * pool} sequences waiting, batches of {size}"
    cells = [
        [r["policy"], r["passes"], f"{r['tokens_per_pass']:.1f}", f"{r['experts_per_layer']:.2f}"]
        for r in rows
    ]
    heads = ["policy", "passes", "tokens a pass", "distinct experts a layer"]
    table(title, heads, cells, right=(1, 2, 3))
