"""A measured run as a deployment: model, machine, plan, formats and engine of a row."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moesim.errors import InfeasibleError
from moesim.model import load as load_model
from moesim.parallel.plan import Plan
from moesim.serving.checkpoints import WIDE, stored_formats
from moesim.serving.deployment import Deployment
from moesim.serving.machines import cluster_for
from moesim.serving.profiles import load_profile
from moesim.validate.serving_conventions import conventions
from moesim.validate.serving_points import Layout, Point

MOST_MEMORY = 0.97
"""Share of the memory that an engine can be made to fill."""
MOST_SLICES = 8
"""Experts in more slices than this are run by no engine: such a row means whole experts on every rank."""


@dataclass(frozen=True)
class Service:
    """Deployments of one row.

    Attributes
    ----------
    prefill, decode : Deployment
        The same object where one instance does both.
    num_prefill, num_decode : int
        Instances of each. [-]
    """

    prefill: Deployment
    decode: Deployment
    num_prefill: int = 1
    num_decode: int = 1

    @property
    def is_disaggregated(self) -> bool:
        """Whether the phases run on instances of their own."""
        return self.prefill is not self.decode


class Services:
    """Makes deployments, each once however many rows have it.

    Parameters
    ----------
    generator : Generator
        Routing generator of all of them.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Deployment] = {}

    def of(self, point: Point) -> Service:
        """Service of a row.

        Raises
        ------
        InputError
            Unknown model, device, engine or format, or a plan that does not go with the model.
        InfeasibleError
            The weights do not fit.
        """
        if point.prefill is not None and point.decode is not None and point.is_disaggregated:
            return Service(
                self._deployment(point, point.prefill, point.prefill.batch),
                self._deployment(point, point.decode, point.decode.batch),
                point.prefill.num_workers,
                point.decode.num_workers,
            )
        assert point.layout is not None  # checked where the row was read
        one = self._deployment(point, point.layout, None)
        return Service(one, one)

    def _deployment(self, point: Point, layout: Layout, max_num_seqs: int | None) -> Deployment:
        """Deployment whose cache holds at least one request of the row.

        Where the engine's default leaves no room, the runs raised its share of the memory.
        """
        fields = (point.model, point.device, point.engine, point.engine_version, point.gemm_dtype)
        # a prompt that is not cut must fit into one iteration: runs raise the budget for it
        longest = point.input_tokens + point.output_tokens
        launch = conventions().launch(point)
        budget = launch.token_budget(point) if launch else None
        key = (*fields, point.expert_dtype, point.kv_dtype, layout, max_num_seqs, longest, budget, point.mode)
        if key not in self._made:
            made = self._build(point, layout, max_num_seqs)
            if not _has_room(made, point):
                fuller = made.profile.model_copy(update={"memory_fraction": MOST_MEMORY})
                made = replace(made, profile=fuller)
            self._made[key] = made
        return self._made[key]

    def _build(self, point: Point, layout: Layout, max_num_seqs: int | None) -> Deployment:
        model = load_model(point.model, where=point.id)
        profile = load_profile(point.engine, point.engine_version, where=point.id)
        stage = layout.tp * layout.attention_dp
        experts = (layout.moe_ep, layout.moe_tp) if model.num_experts else (stage, 1)
        if experts[1] > MOST_SLICES and model.num_experts % stage == 0:
            experts = (stage, 1)
        plan = Plan(layout.tp, layout.pp, layout.attention_dp, *experts)
        weights = point.gemm_dtype or WIDE
        formats = stored_formats(model.name, weights, point.expert_dtype or weights)
        launch = conventions().launch(point)
        kv = point.kv_dtype or (launch.kv if launch else "")
        kv = kv or profile.kv_for(formats.experts if model.num_experts else formats.weights)
        budget = (launch.token_budget(point) if launch else None) or profile.max_num_batched_tokens
        if not profile.chunked_prefill:
            budget = max(budget, point.input_tokens + point.output_tokens)
        return Deployment(
            model,
            plan,
            stored_formats(model.name, weights, point.expert_dtype or weights, kv),
            cluster_for(point.device, plan.num_devices, where=point.id),
            profile,
            max_num_batched_tokens=budget,
            max_num_seqs=max_num_seqs,
        )


def _has_room(deployment: Deployment, point: Point) -> bool:
    try:
        return deployment.cache_tokens() >= point.input_tokens + point.output_tokens
    except InfeasibleError:
        return False
