"""Published training steps as data: recipes with their runs, pairs of runs, MoE Parallel Folding's table.

Files of ``published``: ``training_{steps,pairs,folding}.yaml``. Every field is checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moesim.errors import InputError, Problem
from moesim.files import Tree, read_tree, validated
from moesim.parallel.train_plan import TrainPlan
from moesim.training.recompute import Recompute
from moesim.training.states import States
from moesim.validate.claims import PUBLISHED

Metric = Literal["step_s", "tokens_per_s_per_device", "tflops_per_device", "memory_bytes"]

_TOKEN = re.compile(r"([EtmL|])(?:\*(\d+))?")
_GROUP = re.compile(r"\(([^()]*)\)\*(\d+)")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Plan(_Strict):
    """Degrees of parallelism without the data-parallel one, which the number of devices gives."""

    tp: int = Field(1, ge=1)
    cp: int = Field(1, ge=1)
    pp: int = Field(1, ge=1)
    vpp: int = Field(1, ge=1)
    ep: int = Field(1, ge=1)
    etp: int = Field(1, ge=1)
    folded: bool = True

    def on(self, num_devices: int) -> TrainPlan:
        """Plan of a whole machine.

        Raises
        ------
        InputError
            The devices do not divide.
        """
        inner = self.tp * self.cp * self.pp
        if num_devices % inner:
            text = f"got {num_devices}; accepted: a multiple of tp * cp * pp = {inner}"
            raise InputError([Problem("num_devices", text)])
        return TrainPlan(dp=num_devices // inner, **self.model_dump())


class Overlap(_Strict):
    """What runs beside what: expert exchanges, weight gradients later, gradient and parameter collectives."""

    ep: bool = False
    delayed_wgrad: bool = False
    grad_reduce: bool = False
    param_gather: bool = False
    tp: bool = False


class Step(_Strict):
    """How a step is laid out.

    Attributes
    ----------
    name, model, cluster, precision, attention_precision : str
        Of the recipe, the bundled model and machine; formats of products of weights, and of attention's.
    layout : str or None
        Pipeline layout in Megatron-Core's letters, see :func:`parts_of`; None: as even as may be.
    micro_batch, global_batch : int
        Sequences. [-]
    sequence_tokens : int
        Length of a sequence. [tokens]
    exchange : str
        How tokens travel to experts.
    exchange_sms : int or None
        Multiprocessors that the exchange keeps busy. [-]
    capacity_factor : float or None
        Room of an expert over its even share; None: dropless. [-]
    node_limit, fused_sinks, text_tokens
        Most nodes a token is sent to; attention with learnt sinks in one kernel; mean length of packed texts.
    routing : str
        Balance forced, of a trained model, or of one in its first hundred steps.
    source, assumed
        Where the settings are from, and what is not said there.
    """

    name: str
    model: str
    cluster: str
    num_devices: int = Field(ge=1)
    precision: Literal["bf16", "fp8", "mxfp8"]
    attention_precision: Literal["bf16", "fp8"] = "bf16"
    plan: Plan = Plan()
    layout: str | None = None
    schedule: Literal["one_f_one_b", "dualpipe"] = "one_f_one_b"
    mtp_layers: int = Field(0, ge=0)
    micro_batch: int = Field(1, ge=1)
    global_batch: int = Field(ge=1)
    sequence_tokens: int = Field(4096, ge=1)
    exchange: Literal["deepep", "hybridep", "alltoall", "none"] = "none"
    exchange_sms: int | None = None
    recompute: dict[str, Any] = {}
    overlap: Overlap = Overlap()
    cuda_graph: Literal["none", "partial", "full"] = "none"
    routing: Literal["forced", "natural", "started"] = "forced"
    text_tokens: int | None = Field(None, ge=1)
    capacity_factor: float | None = None
    node_limit: int | None = None
    states: dict[str, Any] = {}
    fused_sinks: bool = False
    source: str
    assumed: tuple[str, ...] = ()

    @property
    def train_plan(self) -> TrainPlan:
        """Plan over all devices."""
        return self.plan.on(self.num_devices)

    @property
    def kept(self) -> States:
        """Formats and sharding of weights, gradients and optimizer states."""
        return States(**self.states)

    @property
    def policy(self) -> Recompute:
        """What is recomputed."""
        given = dict(self.recompute)
        given["modules"] = tuple(given.get("modules", ()))
        return Recompute(**given)

    @property
    def tokens(self) -> int:
        """Of one step. [tokens]"""
        return self.global_batch * self.sequence_tokens


class _Run(_Strict):
    id: str
    source: str
    step_s: float | None = Field(None, gt=0)
    tokens_per_s_per_device: float | None = Field(None, gt=0)
    tflops_per_device: float | None = Field(None, gt=0)
    memory_bytes: float | None = Field(None, gt=0)
    device_hours_per_trillion: float | None = Field(None, gt=0)
    changed: dict[str, Any] = {}
    note: str = ""


class _Recipe(Step):
    runs: list[_Run]


class _NotModelled(_Strict):
    rows: str
    why: str


class _Steps(_Strict):
    sources: dict[str, str]
    recipes: list[_Recipe]
    not_modelled: list[_NotModelled]


@dataclass(frozen=True, slots=True)
class Row:
    """One published run.

    Attributes
    ----------
    id : str
    step : Step
        How it was laid out.
    source, note : str
        Of the measurement.
    measured : mapping
        By :data:`Metric`; of ``step_s`` and ``tokens_per_s_per_device`` one gives the other.
    """

    id: str
    step: Step
    source: str
    note: str
    measured: Mapping[str, float]


class Pair(_Strict):
    """Two runs of the same code that differ in one switch, judged by one metric."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    switch: str
    before: str = Field(alias="from")
    after: str = Field(alias="to")
    metric: Metric
    note: str = ""


class _Pairs(_Strict):
    pairs: list[Pair]


class Cell(_Strict):
    """A layout of Parallel Folding's table and its MFU in percent; None: out of memory."""

    method: str
    plan: Plan
    sharding: Literal["zero1", "fsdp"] = "zero1"
    mfu: float | None


class FoldedModel(_Strict):
    """A column of the table: a bundled model, or one made of it."""

    name: str
    model: str
    num_devices: int
    fine_grained: int = 1
    top_k: int = 0
    upcycled: dict[str, int] = {}
    cells: list[Cell]


class _Scaling(_Strict):
    model: str
    method: str
    mfu: dict[int, float]


class _ScalingTable(_Strict):
    global_batch: int
    rows: list[_Scaling]


class _Context(_Strict):
    model: str
    method: str
    num_devices: int
    sequence_tokens: int
    global_batch: int
    plan: Plan
    mfu: float


class _ContextTable(_Strict):
    rows: list[_Context]


class _Precision(_Strict):
    method: str
    precision: Literal["bf16", "fp8"]
    tflops_per_device: float


class Folding(_Strict):
    """MoE Parallel Folding's tables."""

    source: str
    peak_flops_per_s: float
    global_batch: int
    sequence_tokens: int
    micro_batch: int
    capacity_factor: float
    assumed: list[str]
    clusters: dict[int, str]
    methods: list[str]
    models: list[FoldedModel]
    strong_scaling: _ScalingTable
    context: _ContextTable
    fp8: list[_Precision]


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """Every published run, in the order of the file.

    Raises
    ------
    InputError
        A field that is unknown or out of range, an id twice, a source that is not named.
    """
    return rows_of(read_tree(PUBLISHED / "training_steps.yaml"))


def rows_of(tree: Tree) -> tuple[Row, ...]:
    """Runs of a tree; errors as :func:`rows`."""
    found = validated(_Steps, tree)
    made = []
    problems: list[Problem] = []
    for position, recipe in enumerate(found.recipes):
        fields = recipe.model_dump(exclude={"runs"})
        for number, run in enumerate(recipe.runs):
            at = f"recipes.{position}.runs.{number}"
            unknown = {recipe.source, run.source} - set(found.sources)
            problems += [
                Problem(f"{at}.source", f"got {name!r}; accepted: a key of sources")
                for name in sorted(unknown)
            ]
            step = validated(Step, Tree(fields | run.changed, source=f"{tree.source} {run.id}"))
            source = found.sources.get(run.source, "").replace("{model}", recipe.model.replace("_", "-"))
            made.append(Row(run.id, step, source, run.note, _measured(run, step)))
    ids = [row.id for row in made]
    problems += [
        Problem("runs.id", f"got {name!r} twice") for name in sorted({i for i in ids if ids.count(i) > 1})
    ]
    if problems:
        raise InputError(problems, source=tree.source)
    return tuple(made)


def _measured(run: _Run, step: Step) -> dict[str, float]:
    """What was printed, with the step from the rate or the rate from the step."""
    names = ("step_s", "tokens_per_s_per_device", "tflops_per_device", "memory_bytes")
    known = {name: float(getattr(run, name)) for name in names if getattr(run, name) is not None}
    per_device = step.tokens / step.num_devices
    if "step_s" in known:
        known.setdefault("tokens_per_s_per_device", per_device / known["step_s"])
    elif "tokens_per_s_per_device" in known:
        known["step_s"] = per_device / known["tokens_per_s_per_device"]
    return known


def not_modelled() -> dict[str, str]:
    """Published rows left out, and why."""
    found = validated(_Steps, read_tree(PUBLISHED / "training_steps.yaml"))
    return {entry.rows: entry.why for entry in found.not_modelled}


def pairs() -> tuple[tuple[Pair, Row, Row], ...]:
    """Pairs of runs that differ in one switch.

    Raises
    ------
    InputError
        A run that does not exist, or one without the metric.
    """
    tree = read_tree(PUBLISHED / "training_pairs.yaml")
    known = {row.id: row for row in rows()}
    found, problems = [], []
    for number, pair in enumerate(validated(_Pairs, tree).pairs):
        for run in (pair.before, pair.after):
            if run not in known or pair.metric not in known[run].measured:
                text = f"got {run!r}; accepted: a run with {pair.metric}"
                problems.append(Problem(f"pairs.{number}", text))
        if not problems:
            found.append((pair, known[pair.before], known[pair.after]))
    if problems:
        raise InputError(problems, source=tree.source)
    return tuple(found)


def folding() -> Folding:
    """MoE Parallel Folding's tables."""
    return validated(Folding, read_tree(PUBLISHED / "training_folding.yaml"))


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the model between two cuts of the pipeline: embedding, layers, MTP layers, head."""

    embedding: bool
    layers: int
    mtp_layers: int
    head: bool


def parts_of(layout: str) -> tuple[Part, ...]:
    """Parts of a layout in Megatron-Core's letters, first to last.

    Raises
    ------
    InputError
        A letter that is none of E, t, m, L, ``|``.

    Examples
    --------
    >>> [part.layers for part in parts_of("Et|(tt|)*2tmL")]
    [1, 2, 2, 1]
    """
    text = layout
    while _GROUP.search(text):
        text = _GROUP.sub(lambda match: match[1] * int(match[2]), text)
    parts = []
    for piece in text.split("|"):
        if "".join(match[0] for match in _TOKEN.finditer(piece)) != piece:
            accepted = "E, t, m, L, |, x*n and (...)*n"
            raise InputError([Problem("layout", f"got {layout!r}; accepted: {accepted}")])
        counts = dict.fromkeys("EtmL", 0)
        for letter, times in _TOKEN.findall(piece):
            counts[letter] += int(times or 1)
        parts.append(Part(counts["E"] > 0, counts["t"], counts["m"], counts["L"] > 0))
    return tuple(parts)
