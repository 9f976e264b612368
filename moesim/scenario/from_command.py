"""A launch command of an inference engine as a serving scenario, ready to be changed and run."""

from __future__ import annotations

import math
import re
from typing import Any

from moesim.files import Tree
from moesim.serving.commands import read_command
from moesim.serving.engine import Hold
from moesim.serving.from_command import Commanded, commanded

WORKLOAD: dict[str, Any] = {
    "kind": "closed_loop",
    "concurrency": 32,
    "num_requests": 320,
    "input_tokens": 1000,
    "output_tokens": 500,
}
"""What is asked of the service unless the caller says otherwise."""


def scenario_of_command(text: str, device: str, version: str = "") -> tuple[Tree, tuple[str, ...]]:
    """Scenario of a launch command on a device, and what was assumed.

    Raises
    ------
    InputError
        Not a command of a known engine, wrong values, or a plan that does not fit the model.
    """
    found = commanded(read_command(text), device, version)
    return Tree(_data(found, version), source="--from"), found.warnings


def _data(found: Commanded, version: str) -> dict[str, Any]:
    deployment, command = found.deployment, found.command
    plan, dtypes = deployment.plan, deployment.dtypes
    name = f"{deployment.model.name}_{deployment.cluster.node.device.name}_{command.engine}"
    drafts = command.draft_tokens if deployment.model.num_mtp_layers else None
    engine = {
        "name": command.engine,
        "version": version,
        "max_num_batched_tokens": command.max_num_batched_tokens,
        "max_num_seqs": command.max_num_seqs,
        "num_gpu_blocks": command.num_blocks,
        "block_tokens": command.block_tokens,
        "memory_fraction": command.memory_fraction,
        "chunked_prefill": command.chunked_prefill,
        "prefix_caching": command.prefix_caching,
        "draft_tokens": drafts,
        "acceptance": deployment.profile.speculation.acceptance if drafts else None,
        "async_scheduling": command.async_scheduling,
        "all_to_all": command.all_to_all,
        "overlap_decode_tokens": command.overlap_decode_tokens,
        "overlap_prefill_tokens": command.overlap_prefill_tokens,
        "hold": _hold(command.hold),
    }
    data: dict[str, Any] = {
        "schema_version": 1,
        "name": re.sub(r"[^A-Za-z0-9_.\-]+", "_", name),
        "description": f"{command.engine} serving {command.model}",
        "question": "serve",
        "model": found.model_source,
        "cluster": deployment.cluster.name,
        "dtypes": {"weights": dtypes.weights, "experts": dtypes.experts, "kv": dtypes.kv},
        "plan": {
            "tp": plan.tp,
            "pp": plan.pp,
            "attention_dp": plan.attention_dp,
            "ep": plan.ep,
            "moe_tp": plan.moe_tp,
        },
        "engine": {key: value for key, value in engine.items() if value is not None},
        "serving": {"instances": found.num_instances},
        "workload": dict(WORKLOAD),
    }
    if deployment.overlap is not None:
        data["overlap"] = {"policy": command.overlap}
    if deployment.redundant_experts or (command.rebalance_every and deployment.model.num_experts):
        data["placement"] = {"method": "eplb", "redundant_experts": deployment.redundant_experts}
    if command.rebalance_every and deployment.model.num_experts:
        rebalance = {"every_steps": command.rebalance_every, "window_steps": command.rebalance_window}
        data["serving"]["rebalance"] = rebalance
    if deployment.model.num_experts:
        data["routing"] = {"generator": deployment.generator.name}
    return data


def _hold(hold: Hold | None) -> dict[str, Any] | None:
    """As a scenario has it."""
    if hold is None:
        return None
    fill = {} if math.isinf(hold.fill) else {"fill": hold.fill}
    return {"iterations": hold.iterations, "gathers": hold.gathers} | fill
