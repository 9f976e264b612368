"""What a training scenario does not read, and where in its file a wrong value stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from moesim.errors import InputError, Problem
from moesim.scenario.resolve import Resolved

UNREAD = {
    "batch": "training.micro_batch_size and training.sequence_length",
    "overlap": "training.overlap",
    "workload": "none",
    "serving": "none",
    "engine": "training.framework",
    "memory": "training.recompute and training.sharding",
    "executor": "none",
    "offload": "training.optimizer_offload_fraction",
}
"""Sections of other questions, and what stands for them in training."""

FIELDS = {
    "recompute": "training.recompute",
    "states.sharding": "training.sharding",
    "states.gradients": "training.gradient_dtype",
    "states.moments": "training.moment_dtype",
    "states.offload_fraction": "training.optimizer_offload_fraction",
    "schedule": "training.schedule",
}
"""Names under which objects of training tell their problems, as a scenario calls them."""


@contextmanager
def located(resolved: Resolved) -> Iterator[None]:
    """Every problem that is raised inside is told with the file and line that it comes from."""
    try:
        yield
    except InputError as error:
        raise InputError([_placed(one, resolved) for one in error.problems], source=error.source) from None


def _placed(problem: Problem, resolved: Resolved) -> Problem:
    field = problem.field
    for own, name in FIELDS.items():
        if field == own or field.startswith(f"{own}."):
            field = name
    if problem.where or field.startswith("--"):
        return problem
    return replace(problem, field=field, where=resolved.tree.where(tuple(field.split("."))))


def check_sections(resolved: Resolved) -> None:
    """Make sure that nothing is asked for that training would leave out in silence.

    Raises
    ------
    InputError
        Sections of other questions, or the interpreter of shared links.
    """
    scenario = resolved.scenario
    problems = [
        Problem(name, f"is not read by question train_step; accepted: {instead}")
        for name, instead in UNREAD.items()
        if name in scenario.model_fields_set
    ]
    if scenario.interpreter != "vector":
        accepted = "vector: passes and pipeline of a step have no links that are shared in time"
        problems.append(Problem("interpreter", f"got {scenario.interpreter!r}; accepted: {accepted}"))
    if problems:
        raise InputError(problems)
