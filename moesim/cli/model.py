"""``moesim model``: which models can be named, and what one of them weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, metric_rows, table
from moesim.errors import InputError
from moesim.units import fmt_bytes, fmt_parameters

if TYPE_CHECKING:
    from moesim.model import Dtypes, LayerSpec, ModelSpec

app = typer.Typer(
    help="List and show models.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)

WEIGHT_PARTS = ("weights", "experts")


def _names() -> list[str]:
    from moesim.model import bundled_names  # noqa: PLC0415

    return bundled_names()


Name = Annotated[
    str,
    typer.Argument(help="Bundled name, a config.json, or a folder that holds one.", autocompletion=_names),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype",
        help="Storage format of all weights (fp8_block), or of one part (experts=nvfp4, kv=fp8). May repeat.",
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Another value of a field, or of the variant (variant.latent_size=512). Repeats.",
    ),
]
Context = Annotated[int, typer.Option(help="Tokens of a sequence, for its cache and work.", min=1)]


@app.command("list")
def list_models(json: bool = JSON_OPTION) -> None:
    """Bundled models with their sizes."""
    from moesim.model import load  # noqa: PLC0415
    from moesim.model.parameters import stated_active, stated_total  # noqa: PLC0415

    models = [load(name) for name in _names()]
    rows: list[dict[str, Any]] = [
        {
            "name": model.name,
            "total_parameters": stated_total(model),
            "active_parameters": stated_active(model),
            "num_layers": model.num_layers,
            "num_experts": model.num_experts,
            "top_k": model.top_k,
        }
        for model in models
    ]
    if json:
        emit_json(envelope("model list", rows=rows))
        return
    shown = [
        [
            r["name"],
            fmt_parameters(r["total_parameters"]),
            fmt_parameters(r["active_parameters"]),
            r["num_layers"],
            f"{r['top_k']} of {r['num_experts']}" if r["num_experts"] else "dense",
        ]
        for r in rows
    ]
    table("Models", ["name", "parameters", "active", "layers", "experts"], shown, right=[1, 2, 3])


@app.command()
def show(
    name: Name,
    dtype: Formats = None,
    changes: Changes = None,
    context: Context = 4096,
    json: bool = JSON_OPTION,
) -> None:
    """Parameters, weight and cache bytes of a model, by kind of layer."""
    from moesim.model.load import load, load_changed  # noqa: PLC0415

    model = load_changed(name, changes, field="NAME") if changes else load(name, field="NAME")
    formats = _dtypes(dtype or [])
    metrics = _metrics(model, formats, context)
    kinds = [_kind(model, layer, indices, formats) for layer, indices in model.layer_kinds().items()]
    if json:
        document = envelope(
            "model show",
            name=model.name,
            metrics=metrics,
            rows=kinds,
            published=_published(model),
            stored_as=model.stored_as or None,
            source=model.source,
        )
        emit_json(document)
        return
    table(f"Model {model.name}", ["metric", "value", ""], metric_rows(metrics), right=[1])
    columns = ["layers", "kind", "parameters", "active", "weights", "KV per token", "state per sequence"]
    rows = [
        [
            k["num_layers"],
            k["kind"],
            fmt_parameters(k["parameters"]),
            fmt_parameters(k["active_parameters"]),
            fmt_bytes(k["weight_bytes"]),
            fmt_bytes(k["kv_bytes_per_token"]),
            fmt_bytes(k["state_bytes"]),
        ]
        for k in kinds
    ]
    table("One layer of each kind", columns, rows, right=[0, 2, 3, 4, 5, 6])
    for part, stated in (_published(model) or {}).items():
        agrees = "agrees" if stated["agrees"] else "differs"
        typer.echo(
            f"published {part}: {fmt_parameters(stated['parameters'])} ({stated['convention']}), {agrees}"
        )
    if model.stored_as:
        typer.echo(f"its published checkpoint holds {model.stored_as}")
    typer.echo(f"source: {model.source}")


def _dtypes(given: list[str]) -> Dtypes:
    """Formats from ``--dtype`` options, later ones over earlier ones."""
    from moesim.model import Dtypes  # noqa: PLC0415

    known = list(Dtypes.__dataclass_fields__)
    chosen: dict[str, str] = {}
    for text in given:
        part, equals, name = text.rpartition("=")
        if equals and part not in known:
            raise InputError.at(
                "--dtype", text, f"a format, or PART=FORMAT with a part of {', '.join(known)}"
            )
        chosen |= {part: name} if equals else dict.fromkeys(WEIGHT_PARTS, name)
    return Dtypes(**chosen)


def _metrics(model: ModelSpec, dtypes: Dtypes, context_tokens: int) -> dict[str, dict[str, Any]]:
    from moesim.model import parameters  # noqa: PLC0415
    from moesim.model.layer_ops import forward_flops_per_token  # noqa: PLC0415

    experts = [parameters.expert_bytes(layer, model.hidden_size, dtypes) for layer in model.layer_kinds()]
    values: dict[str, tuple[float, str]] = {
        "total_parameters": (parameters.stated_total(model), "parameters"),
        "active_parameters": (parameters.stated_active(model), "parameters"),
        "weight_bytes": (parameters.weight_bytes(model, dtypes), "bytes"),
        "expert_bytes": (max(experts), "bytes"),
        "kv_bytes_per_token": (parameters.kv_bytes_per_token(model, dtypes.kv), "bytes"),
        "sequence_cache_bytes": (
            parameters.sequence_cache_bytes(model, context_tokens, dtypes.kv),
            "bytes",
        ),
        "forward_flops_per_token": (forward_flops_per_token(model, context_tokens), "flops"),
    }
    if model.num_mtp_layers:
        values["mtp_parameters"] = (parameters.mtp_parameters(model) * model.num_mtp_layers, "parameters")
    return {name: {"value": value, "unit": unit} for name, (value, unit) in values.items()}


def _kind(model: ModelSpec, layer: LayerSpec, indices: tuple[int, ...], dtypes: Dtypes) -> dict[str, Any]:
    from moesim.model.parameters import common_layer_bytes, expert_bytes  # noqa: PLC0415

    hidden = model.hidden_size
    num_experts = layer.moe.num_experts if layer.moe else 0
    return {
        "kind": layer.kind,
        "num_layers": len(indices),
        "first_layer": indices[0],
        "parameters": layer.parameters(hidden),
        "active_parameters": layer.active_parameters(hidden),
        "num_experts": num_experts,
        "weight_bytes": common_layer_bytes(layer, hidden, dtypes)
        + layer.stored_experts * expert_bytes(layer, hidden, dtypes),
        "kv_bytes_per_token": layer.kv_bytes_per_token(dtypes.kv),
        "state_bytes": layer.attention.state_bytes(),
    }


def _published(model: ModelSpec) -> dict[str, dict[str, Any]] | None:
    """Counts as their publisher states them, and whether ours agree."""
    from moesim.model.parameters import stated_active, stated_total  # noqa: PLC0415

    result = {}
    for part, stated, count in (
        ("total", model.published_total, stated_total(model)),
        ("active", model.published_active, stated_active(model)),
    ):
        if stated is not None:
            result[part] = {
                "parameters": stated.parameters,
                "convention": stated.convention,
                "with_mtp": stated.with_mtp,
                "other_parameters": stated.other_parameters,
                "agrees": stated.agrees(count),
            }
    return result or None
