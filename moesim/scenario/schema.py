"""The scenario file: one tree whose dotted paths serve the file, ``--set``, errors and sweeps."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.hardware.schema import Cluster
from moesim.memory.ledger import RESERVED_FRACTION
from moesim.model.dtypes import Dtypes as ModelDtypes
from moesim.network.faults import Faults
from moesim.scenario.background_schema import BackgroundFlow
from moesim.scenario.serving_schema import EngineSection, ServingSection, WorkloadSection
from moesim.scenario.training_schema import TrainingSection


class Strict(BaseModel):
    """Base of every section: frozen, unknown fields are errors, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Dtypes(Strict):
    """Storage types; operations compute in the narrowest type the device has for both operands."""

    weights: str = Field("bf16", description="attention, dense and shared-expert weights")
    attention: str = Field("", description="attention weights where they are kept apart; else as weights")
    head: str = Field("bf16", description="embedding, output head and router")
    experts: str = Field("bf16", description="routed expert weights")
    activations: str = Field("bf16", description="activations and combine payload")
    dispatch: str = Field("bf16", description="payload of a dispatched token")
    kv: str = Field("bf16", description="KV cache")

    def of_model(self) -> ModelDtypes:
        """Formats of the parts of the model."""
        names = (field.name for field in fields(ModelDtypes))
        return ModelDtypes(**{name: getattr(self, name) for name in names})


class PlanSection(Strict):
    """Who works on what.

    ``num_devices = pp * tp * attention_dp`` and, per stage, ``tp * attention_dp = moe_tp * ep``. In training
    ``num_devices = pp * tp * cp * dp`` and a stage's ranks are also ``etp * ep`` times the expert replicas.
    """

    tp: int = Field(1, ge=1, description="tensor-parallel ranks of attention and dense layers")
    pp: int = Field(1, ge=1, description="pipeline stages")
    attention_dp: int = Field(1, ge=1, description="attention data-parallel groups per stage")
    ep: int | None = Field(
        None, ge=1, description="expert-parallel ranks per stage; default: all of the stage"
    )
    moe_tp: int | None = Field(
        None, ge=1, description="tensor-parallel ranks inside an expert; default: what is left"
    )
    dp: int | None = Field(
        None,
        ge=1,
        description="training: data-parallel ranks of attention; default: all devices that are left",
    )
    cp: int = Field(1, ge=1, description="training: context-parallel ranks")
    vpp: int = Field(1, ge=1, description="training: chunks of layers that each stage holds")
    etp: int | None = Field(None, ge=1, description="training: tensor-parallel ranks inside an expert")
    folded: bool = Field(
        True, description="training: expert groups may run over tensor- and context-parallel ranks"
    )
    layers: tuple[int, ...] | None = Field(None, description="training: layers of each part of the pipeline")
    num_devices: int | None = Field(None, ge=1, description="checked against the product when given")


class PlacementSection(Strict):
    """Where each expert lives: a registered method with its parameters, or a file."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    method: str = Field("linear", description="registered placement method; other fields are its parameters")
    redundant_experts: int = Field(0, ge=0, description="replica slots per layer, over all ranks")
    file: str | None = Field(
        None, description="placement written by `moesim place --out`; replaces the method"
    )

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the method."""
        return dict(self.__pydantic_extra__ or {})


class RoutingSection(Strict):
    """Which expert each token goes to: a recorded trace, or a registered generator with its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    trace: str | None = Field(None, description="routing trace (.safetensors); replayed")
    repeat_layers: bool = Field(
        False, description="let a trace of fewer layers stand for a deeper model of equal experts"
    )
    generator: str | None = Field(None, description="registered generator; other fields are its parameters")
    num_batches: int = Field(
        8, ge=1, le=256, description="routed batches sampled; the spread over them is the scatter"
    )
    fit_fraction: float = Field(0.5, gt=0, lt=1, description="share of the traffic the placement may look at")

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the generator."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _one_source(self) -> RoutingSection:
        if (self.trace is None) == (self.generator is None):
            raise ValueError("give either trace or generator")
        if self.trace is not None and self.params:
            message = f"unknown fields beside a trace: {', '.join(sorted(self.params))}"
            raise ValueError(message)
        return self


class BatchSection(Strict):
    """What one step works on, per attention-DP group."""

    tokens_per_rank: int = Field(
        ge=1, description="new tokens per attention-DP group and microbatch; in decode one a sequence"
    )
    context_tokens: int = Field(0, ge=0, description="tokens already in the KV cache of each sequence")
    sequences_per_rank: int | None = Field(
        None, ge=1, description="prefill only: sequences the new tokens belong to; default 1"
    )


class NetworkSection(Strict):
    """How tokens travel."""

    deduplicate: Literal["auto", "expert", "rank", "node"] = Field(
        "auto",
        description="what a token is sent once per: chosen expert, destination rank, or node; auto: what the "
        "exchange does, and with exchange auto that of the one that moves evenly routed tokens fastest",
    )
    exchange: str = Field(
        "auto",
        description="registered algorithm of dispatch and combine; auto: the cheapest that was measured",
    )
    all_reduce: str = Field(
        "auto", description="registered algorithm or measured library; auto: the cheapest that was measured"
    )
    exchange_params: dict[str, Any] = Field({}, description="parameters of the named exchange")
    sms: int = Field(20, ge=1, description="multiprocessors of each device given to exchange kernels")
    far_rate_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="rate between more than four scale-up domains over that between fewer; a public "
        "measurement had 0.4 to 0.7, others none",
    )
    payload_ratio: float = Field(
        1.0, gt=0, le=1, description="bytes sent over bytes of the tokens; below 1 where they are compressed"
    )
    background: dict[str, BackgroundFlow] = Field(
        {}, description="traffic of others on the same links, by name; needs interpreter events"
    )


class OverlapSection(Strict):
    """Overlap policy and its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    policy: str = Field("none", description="registered overlap policy")

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the policy."""
        return dict(self.__pydantic_extra__ or {})


class CacheSection(Strict):
    """Experts that the device holds: a registered cache policy with its parameters, and sizes."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    policy: str = Field("lru", description="registered cache policy; other fields are its parameters")
    slots_per_layer: int | None = Field(
        None,
        ge=0,
        description="experts held of each MoE layer, at most all; refused where they do not fit; "
        "default: as many as fit",
    )
    layout: Literal["even", "shallow", "front"] = Field(
        "even", description="equal layers, more for the first layers, or whole layers from the first on"
    )
    pooled: bool = Field(False, description="one cache for all layers instead of one a layer")
    filled: bool = Field(
        False, description="a cache that changes begins with the experts used most before, not empty"
    )

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the policy."""
        return dict(self.__pydantic_extra__ or {})


class HostMemorySection(Strict):
    """Experts that host memory holds; the rest lies in CXL memory (host.cxl), then on the disk (host.ssd)."""

    policy: str = Field("lru", description="registered cache policy of host memory")
    slots_per_layer: int | None = Field(
        None, ge=1, description="experts held of each MoE layer; default: all, or as many as fit"
    )
    pinned: bool = Field(True, description="copies to the device start from pinned memory")


class TransferSection(Strict):
    """What one copy to the device moves."""

    unit: Literal["expert", "matrices", "bit_planes"] = Field(
        "expert",
        description="a whole expert; its gate, up and down matrices one by one; or its low-precision bits "
        "first and the rest when they are needed",
    )
    low_fraction: float = Field(
        0.25, gt=0, lt=1, description="bytes of an expert in low precision over those of the expert"
    )


class PrefetchSection(Strict):
    """What is fetched ahead: a registered prefetcher with its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    policy: str = Field("none", description="registered prefetcher; other fields are its parameters")
    buffer: int = Field(
        0,
        ge=0,
        description="experts that can arrive ahead beside the cache, held till their layer is through",
    )

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the prefetcher."""
        return dict(self.__pydantic_extra__ or {})


class ExecutorSection(Strict):
    """Who computes experts: a registered executor with its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    policy: str = Field("device", description="registered executor; other fields are its parameters")
    attention: Literal["device", "cpu", "pim"] = Field(
        "device",
        description="where decode attention over the cached tokens is computed: the device, the CPU with the "
        "cache in host memory, or near-memory units",
    )
    numa: Literal["split", "experts", "interleaved"] = Field(
        "split",
        description="weights of CPU experts on several sockets: each expert cut over them, whole experts in "
        "turn, or pages in turn with threads reading both",
    )
    program: str = Field(
        "kt-kernel", description="program of the CPU experts, described in calibration/roofline/hybrid.yaml"
    )
    cpu_threads: int | None = Field(None, ge=1, description="threads of CPU experts; default: all cores")
    sockets: int | None = Field(None, ge=1, description="sockets in use; default: all")
    layer_overhead_s: float = Field(0.0, ge=0, description="host time a layer that the device waits for")
    pass_overhead_s: float = Field(0.0, ge=0, description="host time a pass that the device waits for")

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the executor."""
        return dict(self.__pydantic_extra__ or {})


class BatchingSection(Strict):
    """Which of the waiting sequences share a decode pass: a registered batcher with its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    policy: str = Field("arrival", description="registered batcher; other fields are its parameters")

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the batcher."""
        return dict(self.__pydantic_extra__ or {})


class OffloadSection(Strict):
    """What an offload run serves: ``batch.tokens_per_rank`` sequences or tokens a pass."""

    phase: Literal["decode", "prefill"] = "decode"
    passes: int = Field(32, ge=1, description="passes that are measured")
    warmup_passes: int = Field(16, ge=0, description="passes before them that fill the caches")
    batching: BatchingSection = BatchingSection()


class MemorySection(Strict):
    """What the memories hold, and what of the device's is not the model's."""

    reserved_fraction: float = Field(
        RESERVED_FRACTION,
        ge=0,
        lt=1,
        description="assumed: driver context, workspaces, graphs and fragmentation",
    )
    cache: CacheSection = CacheSection()
    host: HostMemorySection = HostMemorySection()
    prefetch: PrefetchSection = PrefetchSection()
    transfer: TransferSection = TransferSection()


class BandsSection(Strict):
    """Monte-Carlo samples behind the reported bands."""

    samples: int = Field(64, ge=2, le=4096)


class Scenario(Strict):
    """A whole question with everything it depends on, resolved."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]+$")]
    description: str = ""
    question: Literal["decode_step", "prefill_step", "train_step", "offload", "serve"]
    model: dict[str, Any] = Field(description="bundled name, path to a config.json, or its fields")
    dtypes: Dtypes = Dtypes()
    cluster: Cluster = Field(description="profile name or its fields")
    plan: PlanSection = PlanSection()
    placement: PlacementSection = PlacementSection()
    routing: RoutingSection | None = Field(None, description="needed for a model with experts")
    batch: BatchSection = Field(
        BatchSection(tokens_per_rank=1), description="needed unless the question is serve or train_step"
    )
    workload: WorkloadSection | None = Field(None, description="needed if question is serve")
    engine: EngineSection = EngineSection()
    serving: ServingSection = ServingSection()
    network: NetworkSection = NetworkSection()
    faults: Faults = Field(Faults(), description="links, ports and devices that are slow or dead")
    overlap: OverlapSection = OverlapSection()
    memory: MemorySection = MemorySection()
    executor: ExecutorSection = ExecutorSection()
    offload: OffloadSection = OffloadSection()
    training: TrainingSection = Field(TrainingSection(), description="needed if question is train_step")
    interpreter: Literal["vector", "events"] = "vector"
    bands: BandsSection = BandsSection()
    seed: int = Field(0, ge=0)

    @property
    def named_engine(self) -> EngineSection | None:
        """Engine that the scenario names; None where it leaves the choice of kernels open."""
        return self.engine if "engine" in self.model_fields_set else None

    @model_validator(mode="after")
    def _has_what_is_asked(self) -> Scenario:
        needed = {"serve": "workload", "train_step": "training"}.get(self.question, "batch")
        if needed not in self.model_fields_set:
            message = f"{needed} is missing; accepted: a section {needed} (the question is {self.question})"
            raise ValueError(message)
        steps = self.question in {"decode_step", "prefill_step"}
        if self.network.background and not (steps and self.interpreter == "events"):
            asked = f"question {self.question} with interpreter {self.interpreter}"
            accepted = "decode_step or prefill_step with interpreter: events (links are shared in time)"
            message = f"network.background: got {asked}; accepted: {accepted}"
            raise ValueError(message)
        return self


def file_schema() -> dict[str, Any]:
    """JSON Schema of a scenario file, for editors: names may stand where descriptions are inlined."""
    schema = Scenario.model_json_schema()
    named = {"type": "string", "description": "name of a shipped one, or a path"}
    for field in ("model", "cluster"):
        described = schema["properties"][field]
        # a description may leave out what its profile already says
        partial = {"type": "object", "description": "a profile or name with fields overridden, or all fields"}
        schema["properties"][field] = {"anyOf": [named, partial], "description": described["description"]}
    unused = schema["$defs"].keys() - {
        ref.removeprefix("#/$defs/") for ref in _references({k: v for k, v in schema.items() if k != "$defs"})
    }
    schema["$defs"] = {name: part for name, part in schema["$defs"].items() if name not in unused}
    schema["title"] = "moesim scenario"
    return schema


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [ref for value in node.values() for ref in _references(value)]
    if isinstance(node, list):
        return [ref for value in node for ref in _references(value)]
    return []
