"""All runs of a file predicted: over cores, resumed after an interruption, the same in any order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import MoesimError
from moesim.files import data_folders
from moesim.files.find import PACKAGE
from moesim.model import load as load_model
from moesim.serving.deployment import Deployment
from moesim.serving.profiles import load_profile
from moesim.serving.step_times import StepShape
from moesim.validate.serving_overheads import Overheads, Sample
from moesim.validate.serving_play import Played, play
from moesim.validate.serving_points import Point
from moesim.validate.serving_service import Services
from moesim.validate.serving_summary import Predicted, Row

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""

TASK_ROWS = 12
"""Rows of one deployment that are handed out together: its tables are made once for all of them."""
JOURNAL = "predictions.jsonl"
INPUTS = ("engines", "calibration", "hardware_profiles")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found for one run, in plain numbers: what the journal keeps.

    Attributes
    ----------
    ttft_s, tpot_s : float or None
        None where nothing was predicted. [s]
    ttft_sigma, tpot_sigma : float
        Spread of ln(true / predicted). [-]
    reason : str
        Why nothing was predicted.
    warnings : tuple of str
    gain, decodes : float
        Tokens that a sequence gains in an iteration; sequences of a rank in a typical one.
    family : str
        First version of the engine's family.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    ttft_sigma: float = 0.0
    tpot_sigma: float = 0.0
    reason: str = ""
    warnings: tuple[str, ...] = ()
    gain: float = 1.0
    decodes: float = 1.0
    family: str = ""

    def row(self, point: Point) -> Row:
        """Beside its measurement."""
        if self.ttft_s is None or self.tpot_s is None:
            return Row(point, {}, self.reason, self.warnings, self)
        rest_s = (point.output_tokens - 1) * self.tpot_s
        total_s = self.ttft_s + rest_s
        spread = (self.ttft_s * self.ttft_sigma + rest_s * self.tpot_sigma) / total_s
        predicted = {
            "tpot": Predicted(self.tpot_s, self.tpot_sigma),
            "ttft": Predicted(self.ttft_s, self.ttft_sigma),
            "latency": Predicted(total_s, spread),
        }
        return Row(point, predicted, warnings=self.warnings, outcome=self)


def predict(
    points: Sequence[Point], *, jobs: int = 1, folder: Path | None = None, progress: Progress | None = None
) -> list[Row]:
    """Rows of all points, in their order.

    Parameters
    ----------
    points : sequence of Point
    jobs : int
        Processes; the result does not depend on it.
    folder : Path, optional
        Where a journal of what is done is kept; rows in it that were made by the same code and data from
        the same values are not made again.
    progress : callable, optional
    """
    keys = [key_of(point) for point in points]
    journal = Journal(folder / JOURNAL) if folder is not None else None
    done = journal.read() if journal is not None else {}
    missing = {key: point for key, point in zip(keys, points, strict=True) if key not in done}
    tasks = list(_tasks(missing))
    finished = sum(key in done for key in keys)
    if progress is not None:
        progress(finished, len(points))
    counts = {key: keys.count(key) for key in missing}
    for outcomes in _worked(tasks, jobs):
        done |= outcomes
        if journal is not None:
            journal.add(outcomes)
        finished += sum(counts[key] for key in outcomes)
        if progress is not None:
            progress(finished, len(points))
    return [done[key].row(point) for key, point in zip(keys, points, strict=True)]


def outcome_of(point: Point, services: Services) -> Outcome:
    """Prediction of one run; what cannot be predicted says why."""
    try:
        service = services.of(point)
        played = play(point, service)
    except MoesimError as error:
        return Outcome(reason=" ".join(str(error).split()))
    tpot_sigma = step_sigma(service.decode, played)
    first = service.prefill.profile.first_token_sigma
    told = service.decode.profile.stand_in
    ttft_sigma = float(np.hypot(first, tpot_sigma))
    return Outcome(
        played.ttft_s,
        played.tpot_s,
        ttft_sigma,
        tpot_sigma,
        warnings=(told,) if told else (),
        gain=service.decode.tokens_per_step,
        decodes=played.decodes,
        family=service.decode.profile.family,
    )


def step_sigma(deployment: Deployment, played: Played) -> float:
    """Spread of a step: errors of its parts' families, and what remains within the engine's family."""
    ranks = deployment.num_ranks
    shape = StepShape.of(
        num_decodes=np.full((1, ranks), played.decodes),
        decode_context_tokens=np.full((1, ranks), played.decodes * played.context_tokens),
        tokens_per_decode=1.0 + deployment.drafts,
    )
    spread: dict[str, float] = {}
    total = 0.0
    for term in deployment.step_times().terms(shape):
        spread[term.family] = spread.get(term.family, 0.0) + float(term.seconds[0]) * term.sigma
        total += float(term.seconds[0])
    parts = sum(value**2 for value in spread.values()) ** 0.5 / total
    return float(np.hypot(parts, deployment.profile.step_sigma))


def key_of(point: Point) -> str:
    """Digest of everything that decides a prediction: the row without its measurements, code and data."""
    values = point.model_dump(exclude={"id", "ttft_s", "tpot_s", "num_devices"})
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(f"{_fingerprint()}\n{text}".encode()).hexdigest()[:32]


@lru_cache
def _fingerprint() -> str:
    """Digest of the package's code and of the data that predictions read."""
    digest = hashlib.sha256()
    folders = [PACKAGE, *(folder for room in INPUTS for folder in data_folders(room))]
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in {".py", ".yaml", ".json"}):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _tasks(missing: dict[str, Point]) -> Iterator[dict[str, Point]]:
    """Rows of equal deployments together, in pieces."""
    groups: dict[tuple[Any, ...], dict[str, Point]] = {}
    for key, point in missing.items():
        same = (point.model, point.device, point.engine, point.engine_version, point.gemm_dtype)
        group = groups.setdefault((*same, point.layout, point.prefill, point.decode), {})
        group[key] = point
    for group in groups.values():
        keys = list(group)
        for start in range(0, len(keys), TASK_ROWS):
            yield {key: group[key] for key in keys[start : start + TASK_ROWS]}


def _worked(tasks: Sequence[dict[str, Point]], jobs: int) -> Iterator[dict[str, Outcome]]:
    if jobs <= 1 or len(tasks) <= 1:
        services = Services()
        for task in tasks:
            yield _work(task, services)
        return
    # spawned, not forked: the same state on every platform
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn")) as pool:
        running = [pool.submit(_work, task) for task in tasks]
        for future in as_completed(running):
            yield future.result()


def _work(task: dict[str, Point], services: Services | None = None) -> dict[str, Outcome]:
    made = services or Services()
    return {key: outcome_of(point, made) for key, point in task.items()}


class Journal:
    """Outcomes that are done, a line each; a line that was cut short is not there.

    Parameters
    ----------
    path : Path
        Made, with its folder, when the first outcome is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Outcome]:
        """Whole lines of the file, by key."""
        if not self.path.is_file():
            return {}
        found: dict[str, Outcome] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                values = entry["outcome"] | {"warnings": tuple(entry["outcome"]["warnings"])}
                found[entry["key"]] = Outcome(**values)
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def add(self, outcomes: dict[str, Outcome]) -> None:
        """Append, and leave the file whole up to there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"key": k, "outcome": asdict(o)}, sort_keys=True) for k, o in outcomes.items()]
        whole = not self.path.is_file() or self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + "\n".join(lines) + "\n")


def samples_of(rows: Sequence[Row]) -> list[Sample]:
    """Rows with both metrics measured and predicted, for fits of overheads."""
    found = []
    for row in rows:
        point, outcome = row.point, row.outcome
        if not row.predicted or point.tpot_s is None or point.ttft_s is None:
            continue
        host = load_profile(point.engine, point.engine_version).host
        used = Overheads(host.iteration_s, host.sequence_s, host.request_s, host.delivery_iterations)
        found.append(
            Sample(
                point.model,
                point.engine,
                outcome.family,
                (point.tpot_s, outcome.tpot_s),
                (point.ttft_s, outcome.ttft_s),
                outcome.gain,
                outcome.decodes,
                used,
            )
        )
    return found


def shared_shapes(models: Iterable[str]) -> dict[str, str]:
    """``{model: first of them}`` for models of equal layers: leaving one out leaves the others out too."""
    first: dict[Any, str] = {}
    return {
        name: first.setdefault((spec.hidden_size, spec.layers), name)
        for name in sorted(set(models))
        for spec in [load_model(name)]
    }
