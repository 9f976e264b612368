"""A deployment as an instance on the clock: its limits, its blocks, the prices of its iterations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from moesim.serving.deployment import Deployment
from moesim.serving.engine import Engine
from moesim.serving.iterations import Exact, Iterations
from moesim.serving.memo import Memo
from moesim.serving.one_launch import Spread
from moesim.serving.policies import batching_policies
from moesim.serving.step_times import Floats, StepShape, StepTimes


def engine_of(deployment: Deployment, changes: Mapping[str, Any]) -> Engine:
    """Engine of a deployment: its profile's defaults, then ``changes`` by field of :class:`Engine`.

    Raises
    ------
    InfeasibleError
        The weights leave no room for a cache, and ``num_blocks`` is not among the changes.
    """
    profile, host = deployment.profile, deployment.profile.host
    block_tokens = changes.get("block_tokens", profile.block_tokens)
    num_blocks = changes.get("num_blocks")
    engine = Engine(
        num_blocks=deployment.cache_tokens() // block_tokens if num_blocks is None else num_blocks,
        block_tokens=block_tokens,
        max_num_batched_tokens=deployment.token_budget,
        max_num_seqs=deployment.sequence_limit,
        chunked_prefill=profile.chunked_prefill,
        batching=batching_policies.build(profile.batching, {}, field="engine.batching"),
        reserve_whole=profile.reserve_whole,
        async_scheduling=profile.async_scheduling,
        frontend_s=host.request_s,
        frontend_s_per_token=host.request_token_s,
        drafting=deployment.drafting,
        delivery_tokens=host.delivery_iterations * deployment.tokens_per_step,
    )
    return replace(engine, **changes)


def iterations_of(
    deployment: Deployment,
    engine: Engine,
    *,
    how: Literal["exact", "memo"],
    longest: int,
    scale: float = 1.0,
    spread: Spread | None = None,
) -> Iterations:
    """Prices of the iterations of a deployment.

    Parameters
    ----------
    deployment : Deployment
    engine : Engine
    how : str
        ``exact``: each by itself; ``memo``: on a grid, see :class:`Memo`.
    longest : int
        Tokens of the longest sequence. [tokens]
    scale : float
        Factor on all device times: a draw of their error. [-]
    spread : Spread, optional
        Of the caches that decode together; None: all alike.
    """
    times: StepTimes = deployment.step_times("exact" if how == "exact" else "table", spread)
    if scale != 1.0:
        times = Scaled(times, scale)
    exact = Exact(times, engine, float(engine.tokens_per_decode))
    if how == "exact":
        return exact
    most = engine.max_num_batched_tokens
    return Memo(exact, max_tokens=most, max_decodes=engine.max_num_seqs, max_context=longest)


@dataclass(frozen=True)
class Scaled:
    """Step times whose device part is longer or shorter by a factor."""

    times: StepTimes
    scale: float

    @property
    def num_ranks(self) -> int:
        """Attention-DP ranks."""
        return self.times.num_ranks

    def seconds(self, shapes: StepShape) -> Floats:
        """As :class:`StepTimes`."""
        return self.times.seconds(shapes) * self.scale

    def overhead(self, shapes: StepShape) -> Floats:
        """As :class:`StepTimes`."""
        return self.times.overhead(shapes)
