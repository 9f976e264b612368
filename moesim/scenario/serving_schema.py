"""Sections of a scenario that asks how a service behaves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Policy(BaseModel):
    """A registered policy: its name under one key, its parameters as the other fields."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the policy."""
        return dict(self.__pydantic_extra__ or {})


class LengthSection(_Policy):
    """How many tokens: a registered distribution with its parameters."""

    kind: str = Field("fixed", description="registered length distribution; other fields are its parameters")


class PrefixSection(_Strict):
    """Starts that prompts share: tokens that come before ``input_tokens``."""

    groups: int = Field(ge=1, description="different starts; each request has one of them")
    tokens: int = Field(ge=1, description="tokens of a start")


class TurnSection(_Strict):
    """Conversations: each prompt holds all that was said before it."""

    requests: int = Field(ge=1, description="requests of a conversation")
    think_s: float = Field(0.0, ge=0, description="from an answer to the next prompt")


class WorkloadSection(_Policy):
    """Requests: ``closed_loop``, ``file``, or a registered arrival process with its parameters."""

    kind: str = Field(
        description="closed_loop, file, or a registered arrival process; other fields are its parameters"
    )
    num_requests: int = Field(1000, ge=1, le=10**7)
    warmup_requests: int = Field(0, ge=0, description="first requests that latencies leave out")
    input_tokens: int | LengthSection = Field(1000, description="tokens of a prompt, or their distribution")
    output_tokens: int | LengthSection = Field(128, description="tokens of an answer, or their distribution")
    concurrency: int | None = Field(None, ge=1, description="closed_loop: clients")
    ramp_s: float = Field(0.0, ge=0, description="closed_loop: time over which the clients start")
    file: str | None = Field(None, description="file: CSV or JSON lines of requests")
    prefixes: PrefixSection | None = None
    turns: TurnSection | None = None


class HoldSection(_Strict):
    """When an engine that decodes looks at new requests."""

    iterations: int = Field(
        ge=1,
        description="after so many since the last look, or since the first that waits if it gathers them",
    )
    gathers: bool = Field(False, description="whether prompts wait for others")
    fill: float | None = Field(
        None, gt=0, description="prompt tokens over the token budget that end the wait; default: nothing does"
    )


class EngineSection(_Strict):
    """An engine profile by name and version, and what this service sets otherwise."""

    name: str = Field("vllm", description="engine profile")
    version: str = Field(
        "", description="release, the newest known if empty; the nearest family answers for an unknown one"
    )
    max_num_batched_tokens: int | None = Field(None, ge=1, description="new tokens of an iteration")
    max_num_seqs: int | None = Field(None, ge=1, description="sequences in the batch of an attention rank")
    num_gpu_blocks: int | None = Field(None, ge=1, description="KV blocks of a rank; default: what fits")
    block_tokens: int | None = Field(None, ge=1, description="tokens of a KV block")
    memory_fraction: float | None = Field(
        None, gt=0, le=1, description="share of device memory for weights and KV"
    )
    chunked_prefill: bool | None = Field(None, description="whether a prompt may be cut")
    batching: str | None = Field(None, description="registered batching policy")
    prefix_caching: bool = Field(True, description="keep and reuse starts of prompts")
    async_scheduling: bool | None = Field(
        None, description="whether the host prepares an iteration beside the one before"
    )
    all_to_all: bool | None = Field(
        None,
        description="whether tokens go to their experts only; otherwise every rank gathers all. Default: the "
        "engine's, which depends on the ranks",
    )
    hold: HoldSection | None = Field(
        None, description="let new requests wait while others decode; default: looked at in every iteration"
    )
    overlap_decode_tokens: int | None = Field(
        None, ge=2, description="tokens of every rank from which overlap cuts an iteration of decodes"
    )
    overlap_prefill_tokens: int | None = Field(
        None, ge=2, description="the same of an iteration with prompts"
    )
    preemption: Literal["recompute", "swap"] = "recompute"
    reserve_whole: bool | None = Field(None, description="start a request only when its last token fits")
    draft_tokens: int | None = Field(None, ge=0, description="speculative tokens of a step (MTP)")
    acceptance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="chance that a draft is right if those before it are, mean of requests",
    )
    acceptance_spread: float = Field(
        0.0, ge=0, description="standard deviation of that chance from request to request"
    )

    @field_validator("version", mode="before")
    @classmethod
    def _no_number(cls, value: Any) -> Any:
        """A bare 0.10 is read as 0.1: another release."""
        if isinstance(value, int | float):
            message = f'got the number {value}; accepted: a release in quotes, as "{value}" (0.10 is not 0.1)'
            raise ValueError(message)  # noqa: TRY004 - told like other values
        return value


class RouterSection(_Policy):
    """Who gets a request."""

    policy: str = Field("least_loaded", description="registered router; other fields are its parameters")


class PoolSection(_Strict):
    """Instances of one role."""

    instances: int = Field(1, ge=1)
    plan: dict[str, Any] | None = Field(None, description="plan of each instance; default: the scenario's")


class ChangeSection(_Strict):
    """Something that happens to an instance.

    ``add`` brings an instance that was not there: it takes requests when its weights have arrived.
    """

    at_s: float = Field(ge=0)
    kind: Literal["down", "up", "drain", "slow", "add"]
    instance: int = Field(ge=0)
    factor: float = Field(1.0, gt=0, description="slow: iterations take so many times as long")
    ready_s: float | None = Field(
        None, ge=0, description="add: until it takes requests; default: weights over the slowest link"
    )


class RebalanceSection(_Strict):
    """Placing experts anew while the service runs, by the method of ``placement``."""

    every_steps: int = Field(3000, ge=1, description="iterations of an instance between two placements")
    window_steps: int = Field(1000, ge=1, description="iterations before it that a placement is made from")


class DispatchSection(_Policy):
    """Who serves the tokens of an expert: a run-time policy that sees each batch."""

    policy: str = Field("even", description="registered split policy; other fields are its parameters")


class SloSection(_Strict):
    """Largest latencies that count as good."""

    ttft_s: float | None = Field(None, gt=0)
    tpot_s: float | None = Field(None, gt=0)
    e2e_latency_s: float | None = Field(None, gt=0)


class ServingSection(_Strict):
    """A service: instances, who does what, what happens to them, and what is good enough."""

    instances: int = Field(1, ge=1, description="replicas of the plan, where there are no pools")
    prefill: PoolSection | None = Field(None, description="instances that only compute prompts")
    decode: PoolSection | None = Field(None, description="instances that only decode")
    router: RouterSection = RouterSection()
    changes: tuple[ChangeSection, ...] = ()
    rebalance: RebalanceSection | None = Field(
        None, description="experts are placed anew; default: they stay"
    )
    dispatch: DispatchSection | None = Field(None, description="tokens over copies; default: evenly")
    slo: SloSection = SloSection()
    step_times: Literal["memo", "exact"] = "memo"
    band_runs: int = Field(8, ge=2, le=256, description="runs with drawn errors of step times behind bands")
    usd_per_device_hour: float | None = Field(
        None, ge=0, description="price of a device; default: of its profile, where that has one"
    )
