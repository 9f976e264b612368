"""``moesim train``: search, memory, calculators; steps themselves are scenarios (``moesim run``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, metric_rows, table
from moesim.cli.train_drift import drift
from moesim.cli.train_memory import memory
from moesim.cli.train_search import search
from moesim.errors import InputError, Problem
from moesim.units import fmt_quantity

if TYPE_CHECKING:
    from moesim.hardware.device import Device as Profile
    from moesim.training.calculators.cost import Device, Stage

app = typer.Typer(
    help="Search over plans, memory, work, efficiency leverage and cost of training.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

app.command("memory")(memory)
app.command("search")(search)
app.command("drift")(drift)

Model = Annotated[str, typer.Argument(help="Bundled name, a config.json, or a folder that holds one.")]
Sequence = Annotated[int, typer.Option(min=1, help="Tokens of a sequence. [tokens]")]
Mtp = Annotated[bool, typer.Option("--mtp", help="Train multi-token prediction modules, too.")]
Dtype = Annotated[str, typer.Option(help="Format that products work in; decides the device's peak.")]


@app.command()
def flops(
    model: Model,
    *,
    sequence: Sequence = 4096,
    mtp: Mtp = False,
    tokens_per_s: Annotated[float, typer.Option(min=0, help="Rate of one device, for its MFU. [tok/s]")] = 0,
    device: Annotated[str, typer.Option(help="Device profile, for its MFU.")] = "",
    dtype: Dtype = "bf16",
    json: bool = JSON_OPTION,
) -> None:
    """Work of a token by three formulas, and what a measured rate is of a device's peak."""
    from moesim.model import load  # noqa: PLC0415
    from moesim.model.parameters import active_parameters  # noqa: PLC0415
    from moesim.training.calculators.cost import utilisation  # noqa: PLC0415
    from moesim.training.formulas import train_flops_per_token  # noqa: PLC0415

    spec = load(model, field="MODEL")
    counted = train_flops_per_token(spec, sequence, mtp=mtp)
    metrics = {
        "train_flops_per_token": (counted, "flops"),
        "six_active_parameters_flops": (6 * active_parameters(spec, "without_input_embedding"), "flops"),
        "sequence_flops": (counted * sequence, "flops"),
    }
    if tokens_per_s:
        metrics["achieved_flops_per_s"] = (tokens_per_s * counted, "flops_per_s")
    if device:
        peak = _profile(device).dense_peak_flops_per_s(dtype)
        metrics["peak_flops_per_s"] = (peak, "flops_per_s")
        if tokens_per_s:
            metrics["mfu_fraction"] = (utilisation(tokens_per_s, counted, peak), "fraction")
    _tell("train flops", f"{spec.name}, sequences of {sequence} tokens", metrics, json)


@app.command()
def leverage(
    model: Annotated[str, typer.Option(help="Take activation and granularity from a model.")] = "",
    *,
    activation: Annotated[float, typer.Option(min=0, max=1, help="Active over all experts. [-]")] = 0.031,
    granularity: Annotated[float, typer.Option(min=1, help="2 x width / expert width. [-]")] = 12.0,
    compute: Annotated[float, typer.Option(min=1, help="Forward work of the whole run. [FLOP]")] = 1e22,
    tokens: Annotated[float, typer.Option(min=0, help="With --model: tokens of the run, for its work.")] = 0,
    sequence: Sequence = 4096,
    json: bool = JSON_OPTION,
) -> None:
    """Compute of an equally good dense model over the MoE's (Towards Greater Leverage)."""
    from moesim.training.calculators.leverage import (  # noqa: PLC0415
        LeverageLaw,
        best_batch_tokens,
        best_learning_rate,
    )

    title = "Efficiency leverage"
    if model:
        activation, granularity, per_token, title = _shape(model, sequence)
        compute = tokens * per_token if tokens else compute
    law = LeverageLaw()
    metrics = {
        "leverage_ratio": (law.leverage(activation, granularity, compute), "ratio"),
        "activation_fraction": (activation, "fraction"),
        "granularity": (granularity, ""),
        "compute_flops": (compute, "flops"),
        "best_granularity": (law.best_granularity, ""),
        "best_learning_rate": (best_learning_rate(compute), ""),
        "best_batch_tokens": (best_batch_tokens(compute), "tokens"),
    }
    _tell("train leverage", title, metrics, json)


def _shape(name: str, sequence: int) -> tuple[float, float, float, str]:
    """Activation ratio, granularity, forward work of a token, and the name of an MoE model."""
    from moesim.model import load  # noqa: PLC0415
    from moesim.model.layer_ops import forward_flops_per_token  # noqa: PLC0415

    spec = load(name, field="--model")
    if not spec.moe_layers:
        raise InputError.at("--model", name, "a model with experts")
    moe = spec.layers[spec.moe_layers[-1]].moe
    assert moe is not None  # one of the layers with experts
    # shared experts count in units of a routed one
    shared = moe.num_shared_experts * moe.shared_width / moe.expert_width
    activation = (moe.experts_per_token + shared) / (moe.num_experts + shared)
    granularity = 2 * spec.hidden_size / moe.expert_width
    return activation, granularity, forward_flops_per_token(spec, sequence), f"Leverage of {spec.name}"


@app.command()
def cost(
    stage: Annotated[list[str], typer.Option(help="MODEL:TOKENS; repeats, for a model that grows.")],
    device: Annotated[
        list[str],
        typer.Option(help="PROFILE:MFU or PROFILE:MFU:PRICE (an hour, any currency); repeats."),
    ],
    *,
    sequence: Sequence = 4096,
    dtype: Dtype = "bf16",
    json: bool = JSON_OPTION,
) -> None:
    """Device-hours and money of a run in stages, on each kind of device."""
    from moesim.training.calculators.cost import cost as money  # noqa: PLC0415
    from moesim.training.calculators.cost import device_hours  # noqa: PLC0415

    stages = [_stage(text, sequence) for text in stage]
    devices = [_device(text, dtype) for text in device]
    work = sum(part.flops for part in stages)
    tokens = sum(part.tokens for part in stages)
    rows: list[dict[str, Any]] = []
    for bought in devices:
        priced = bought.price_per_hour > 0
        rows.append(
            {
                "device": bought.name,
                "mfu_fraction": bought.utilisation,
                "device_hours": device_hours(work, bought),
                "tokens_per_s_per_device": tokens * bought.flops_per_s / work,
                "price_per_hour": bought.price_per_hour if priced else None,
                "cost": money(stages, bought) if priced else None,
            }
        )
    parts = [{"name": s.name, "tokens": s.tokens, "flops": s.flops} for s in stages]
    if json:
        emit_json(
            envelope("train cost", rows=rows, stages=parts, metrics=_metrics({"flops": (work, "flops")}))
        )
        return
    shown = [[s.name, f"{s.tokens:.3g}", fmt_quantity(s.flops, "flops")] for s in stages]
    table("Stages", ["model", "tokens", "work"], shown, right=[1, 2])
    shown = [
        [
            row["device"],
            fmt_quantity(row["mfu_fraction"], "fraction"),
            f"{row['device_hours']:,.0f}",
            f"{row['tokens_per_s_per_device']:,.0f}",
            "" if row["cost"] is None else f"{row['cost']:,.0f}",
        ]
        for row in rows
    ]
    columns = ["device", "MFU", "device-hours", "tokens/s each", "cost"]
    table("On each kind of device", columns, shown, right=[1, 2, 3, 4])


def _stage(text: str, sequence: int) -> Stage:
    """``MODEL:TOKENS``."""
    from moesim.model import load  # noqa: PLC0415
    from moesim.training.calculators.cost import Stage  # noqa: PLC0415
    from moesim.training.formulas import train_flops_per_token  # noqa: PLC0415

    name, colon, tokens = text.rpartition(":")
    if not colon:
        raise InputError.at("--stage", text, "MODEL:TOKENS, as deepseek_v3:14.8e12")
    spec = load(name, field="--stage")
    return Stage(spec.name, _number("--stage", tokens), train_flops_per_token(spec, sequence))


def _device(text: str, dtype: str) -> Device:
    """``PROFILE:MFU`` or ``PROFILE:MFU:PRICE``; without a price that of the profile, if it has one."""
    from moesim.training.calculators.cost import Device  # noqa: PLC0415

    name, _, rest = text.partition(":")
    mfu, _, price = rest.partition(":")
    if not rest:
        raise InputError.at("--device", text, "PROFILE:MFU or PROFILE:MFU:PRICE, as h800:0.39:2")
    profile = _profile(name)
    share = _number("--device", mfu)
    if not 0 < share <= 1:
        raise InputError.at("--device", text, "an MFU above 0, at most 1")
    hourly = _number("--device", price) if price else profile.price_per_hour_usd or 0.0
    return Device(name, profile.dense_peak_flops_per_s(dtype), share, hourly)


def _number(field: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError([Problem(field, f"got {text!r}; accepted: a number, as 14.8e12")]) from None
    if not value > 0 or value == float("inf"):
        raise InputError([Problem(field, f"got {text!r}; accepted: a number above 0")])
    return value


def _profile(name: str) -> Profile:
    from moesim.hardware.load import load_device  # noqa: PLC0415

    return load_device(name)


def _metrics(values: dict[str, tuple[float, str]]) -> dict[str, dict[str, Any]]:
    return {name: {"value": value, "unit": unit} for name, (value, unit) in values.items()}


def _tell(command: str, title: str, values: dict[str, tuple[float, str]], json: bool) -> None:
    metrics = _metrics(values)
    if json:
        emit_json(envelope(command, metrics=metrics))
        return
    table(title, ["metric", "value", ""], metric_rows(metrics), right=[1])
