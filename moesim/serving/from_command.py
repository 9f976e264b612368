"""A launch command on a device as a deployment: which model it means, in which formats."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from moesim.errors import InputError, Problem
from moesim.hardware.schema import Cluster
from moesim.model import ModelSpec
from moesim.model import load as load_model
from moesim.model.load import bundled_names
from moesim.parallel.plan import Plan
from moesim.serving.checkpoints import WIDE, stored_formats
from moesim.serving.commands import Command
from moesim.serving.deployment import Deployment
from moesim.serving.machines import cluster_for
from moesim.serving.profiles import DEFAULT_ACCEPTANCE, NEWEST, Profile, load_profile
from moesim.steps.overlap import overlap_policies

LABELS = {
    "nvfp4": "nvfp4",
    "fp4": "nvfp4",
    "modelopt_fp4": "nvfp4",
    "w4a4": "nvfp4",
    "mxfp4": "mxfp4",
    "fp8": "fp8",
    "modelopt": "fp8",
    "fp8_block": "fp8_block",
    "awq": "int4",
    "gptq": "int4",
    "int4": "int4",
    "w4a16": "int4",
    "bf16": WIDE,
    "bfloat16": WIDE,
    "int8": "int8",
}
"""Words of repository names and quantisation flags, and the formats they stand for."""


@dataclass(frozen=True)
class Commanded:
    """What a command asks for.

    Attributes
    ----------
    command : Command
    deployment : Deployment
        One instance.
    model_source : str
        Bundled name or path of the model.
    num_instances : int
        Replicas of it.
    warnings : tuple of str
        What was assumed.
    """

    command: Command
    deployment: Deployment
    model_source: str
    num_instances: int
    warnings: tuple[str, ...]


def commanded(command: Command, device: str, version: str = "") -> Commanded:
    """Deployment behind a command.

    Raises
    ------
    InputError
        Unknown model, device, version or format, or a plan that does not fit the model.
    """
    warnings: list[str] = []
    model, spelled = _model(command.model)
    label = _label(command, model, spelled, warnings)
    profile = _profile(command, model, version, warnings)
    stage = command.tp * command.attention_dp
    ep = command.ep if model.num_experts else stage
    if stage % ep:
        accepted = f"a divisor of the {stage} ranks of a stage"
        raise InputError.at("expert parallelism", ep, accepted, where="--from")
    plan = Plan.of(command.tp, command.pp, command.attention_dp, ep, stage // ep)
    formats = stored_formats(model.name, label, label)
    kv = command.kv or profile.kv_for(formats.experts if model.num_experts else formats.weights)
    cluster: Cluster = cluster_for(device, plan.num_devices, where="--device")
    deployment = Deployment(
        model,
        plan,
        replace(formats, kv=kv),
        cluster,
        profile,
        max_num_batched_tokens=command.max_num_batched_tokens,
        max_num_seqs=command.max_num_seqs,
        redundant_experts=command.redundant_experts if model.num_experts else 0,
        overlap=overlap_policies.build(command.overlap) if command.overlap else None,
    )
    if command.overlap and not deployment.overlaps:
        warnings.append(
            "overlap of two batches changes nothing here: no exchange between data-parallel attention ranks"
        )
        deployment = replace(deployment, overlap=None)
    warnings += [f"flag not understood, ignored: {flag}" for flag in command.unknown]
    source = command.model if Path(command.model).exists() else model.name
    return Commanded(command, deployment, source, command.data_parallel, tuple(warnings))


def _model(name: str) -> tuple[ModelSpec, str]:
    """Model of a path, a bundled name or a repository, and the name as it is spelled there."""
    if Path(name).exists():
        return load_model(name, field="model", where="--from"), Path(name).name
    plain = re.sub(r"[^a-z0-9]+", "_", name.rpartition("/")[2].lower()).strip("_")
    for vendor in ("meta_", "nvidia_"):
        plain = plain.removeprefix(vendor)
    # the longest bundled name that the repository's starts with: the rest says format and tuning
    fitting = [known for known in bundled_names() if f"{plain}_".startswith(f"{known}_")]
    if fitting:
        return load_model(max(fitting, key=len)), plain
    return load_model(plain, field="model", where="--from"), plain


def _label(command: Command, model: ModelSpec, spelled: str, warnings: list[str]) -> str:
    """Format label from the flag, the repository's name or the model."""
    if command.weights:
        label = LABELS.get(command.weights.lower().replace("-", "_"))
        if label is None:
            accepted = ", ".join(LABELS)
            raise InputError([Problem("--quantization", f"got {command.weights!r}; accepted: {accepted}")])
        return label
    words = re.split(r"[^a-z0-9]+", spelled.lower().removeprefix(model.name))
    for word in words:
        if word in LABELS:
            return LABELS[word]
    if model.stored_as:
        return model.stored_as
    warnings.append("no quantisation named, none in the model's configuration: weights are taken as bf16")
    return WIDE


def _profile(command: Command, model: ModelSpec, version: str, warnings: list[str]) -> Profile:
    profile = load_profile(command.engine, version or NEWEST, where="--from")
    warnings += [profile.stand_in] if profile.stand_in else []
    changes: dict[str, object] = {}
    for name in ("memory_fraction", "chunked_prefill", "async_scheduling", "block_tokens"):
        value = getattr(command, name)
        if value is not None:
            changes[name] = value
    changes |= profile.with_exchanges(
        command.all_to_all, command.overlap_decode_tokens, command.overlap_prefill_tokens
    )
    if command.draft_tokens is not None:
        if command.draft_tokens and not model.num_mtp_layers:
            warnings.append("drafts ignored: the model has no layers of multi-token prediction")
        acceptance = profile.speculation.acceptance or DEFAULT_ACCEPTANCE
        changes["speculation"] = profile.speculation.model_copy(
            update={
                "draft_tokens": command.draft_tokens,
                "draft_tokens_attention_dp": command.draft_tokens,
                "acceptance": acceptance,
            }
        )
    return profile.model_copy(update=changes)
