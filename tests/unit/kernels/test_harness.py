"""The profiling harness: what can be seen without torch, and the copied folder where torch is present."""

import importlib.util
import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moesim.kernels import harness, measured
from moesim.kernels.harness import output, timing
from moesim.kernels.harness.cases import Case, interleaved
from moesim.kernels.harness.experts import features_of
from moesim.kernels.harness.shapes import expert_counts, log_points
from moesim.kernels.harness.timing import Timing, measure
from moesim.kernels.histogram import ExpertLoad

FACTS = {"device": "some_cpu", "date": "2026-01-02", "torch": "2.9"}
FOLDER = Path(harness.__file__).parent
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


def gemm_case(rows: int, family: str = "gemm") -> Case:
    features = {"rows": rows, "n": 64, "k": 32, "count": 1}
    return Case(family, "torch_linear", "fp32", features, lambda copies: [])


def test_both_sides_of_the_csv_agree():
    """The harness stands alone, so it names its columns itself: they are those of the reader."""
    assert output.SCHEMA_VERSION == measured.SCHEMA_VERSION
    assert output.KEYS == measured.KEY_COLUMNS
    assert output.TIMES == measured.TIME_COLUMNS
    assert output.FAMILIES.items() <= measured.FAMILIES.items()
    assert {c for f in output.FAMILIES.values() for c in f} & measured.TEXT_COLUMNS == output.WORDS


def test_harness_imports_nothing_of_moesim():
    for path in FOLDER.glob("*.py"):
        assert "from moesim" not in path.read_text(), path
        assert "import moesim" not in path.read_text(), path


def test_appended_rows_are_read_back(tmp_path):
    path = output.file_of(tmp_path, FACTS["date"], "gemm")
    for rows, seconds in ((1, 0.5e-3), (7, 2e-3)):
        output.append(path, gemm_case(rows), Timing(seconds, 0.1, 25), FACTS)
    (table,) = measured.read_csv(path)
    assert table.name == "some_cpu/gemm/torch_linear/fp32"
    assert table.provenance["torch"] == "2.9"
    assert table.columns["rows"].tolist() == [1, 7]
    np.testing.assert_allclose(table.seconds, [0.5e-3, 2e-3])
    assert table.repeats.tolist() == [25, 25]


def test_what_was_measured_is_known_again(tmp_path):
    path = output.file_of(tmp_path, FACTS["date"], "gemm")
    output.append(path, gemm_case(3), Timing(1e-3, 0.1, 25), FACTS)
    copied = Case(
        "copy", "torch_copy", "uint8", {"bytes": 4096, "pinned": 0}, lambda n: [], 0, {"direction": "d2d"}
    )
    output.append(output.file_of(tmp_path, FACTS["date"], "copy"), copied, Timing(1e-3, 0.1, 25), FACTS)
    known = output.done(tmp_path)
    assert {gemm_case(3).key, copied.key} <= known
    assert gemm_case(4).key not in known


def test_a_row_cut_short_is_measured_again(tmp_path):
    path = output.file_of(tmp_path, FACTS["date"], "gemm")
    for rows in (3, 5):
        output.append(path, gemm_case(rows), Timing(1e-3, 0.1, 25), FACTS)
    path.write_bytes(path.read_bytes()[:-12])
    assert gemm_case(5).key not in output.done(tmp_path)
    output.append(path, gemm_case(9), Timing(1e-3, 0.1, 25), FACTS)
    (table,) = measured.read_csv(path)
    assert table.columns["rows"].tolist() == [3, 9]


def test_files_of_other_programs_are_passed_over(tmp_path):
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    assert output.done(tmp_path) == set()


def test_short_families_are_spread_from_the_beginning():
    long = [gemm_case(i) for i in range(10)]
    short = [gemm_case(0, "router"), gemm_case(1, "router")]
    order = interleaved([long, short])
    assert len(order) == 12
    assert [i for i, case in enumerate(order) if case.family == "router"] == [1, 7]


def test_any_beginning_of_the_shapes_covers_the_range():
    points = list(itertools.islice(log_points(400, {"rows": (1, 4096), "n": (64, 8192)}), 64))
    for name, low, high in (("rows", 1, 4096), ("n", 64, 8192)):
        values = np.log(np.array([p[name] for p in points]) / low) / np.log(high / low)
        filled, _ = np.histogram(values, bins=8, range=(0, 1.0001))
        assert filled.min() >= 4, name
        assert np.exp(values.max() * np.log(high / low)) * low <= high


def test_histograms_have_all_rows_and_few_experts():
    counts = expert_counts(100, 16, 1.2, 0.25, seed=3)
    assert sum(counts) == 100
    assert sum(c > 0 for c in counts) == 4
    shape = {"hidden": 64, "width": 32, "num_experts": 16}
    features = features_of(counts, shape, tokens=50, top_k=2)
    load = ExpertLoad.of(np.array(counts))
    assert features["rows"] == load.rows
    assert features["touched"] == load.touched
    assert {f"padded_{t}": r for t, r in load.padded_rows.items()}.items() <= features.items()
    assert set(features) == set(measured.FAMILIES["moe"])


class Clock:
    """Time that a test moves by hand; threads wait for a core as long as it says."""

    def __init__(self, monkeypatch):
        self.now = self.waited = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing, "waited_s", lambda: self.waited)


def test_copies_take_turns_and_the_median_is_kept(monkeypatch):
    clock = Clock(monkeypatch)
    used = []

    def call(which):
        used.append(which)
        clock.now += 0.01 if len(used) % 5 else 0.05  # every fifth call is slow

    result = measure([lambda: call("a"), lambda: call("b")], "cpu")
    assert result.seconds == pytest.approx(0.01)
    assert result.spread_fraction > 1
    assert not result.disturbed
    assert used[3:9] in (["a", "b"] * 3, ["b", "a"] * 3)


def test_samples_that_waited_for_a_core_are_set_aside(monkeypatch):
    clock = Clock(monkeypatch)
    turn = itertools.count()

    def call():
        waits = next(turn) % 2
        clock.now += 0.03 if waits else 0.01
        clock.waited += 0.02 if waits else 0.0

    result = measure([call], "cpu")
    assert result.seconds == pytest.approx(0.01)
    assert result.spread_fraction == pytest.approx(0)
    assert not result.disturbed


def test_a_case_that_always_waited_says_so(monkeypatch):
    clock = Clock(monkeypatch)

    def call():
        clock.now += 0.03
        clock.waited += 0.02

    assert measure([call], "cpu").disturbed


class Gpu:
    """Stands for ``torch.cuda``: a queue of work that the host hands over in time of its own."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.free_at = clock, 0.0
        self.Event = lambda enable_timing: Event(self)

    def synchronize(self) -> None:
        self.clock.now = max(self.clock.now, self.free_at)

    def work(self, seconds: float) -> None:
        self.free_at = max(self.clock.now, self.free_at) + seconds

    def _sleep(self, cycles: int) -> None:
        self.work(cycles / 2.0e9)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.at = max(self.gpu.clock.now, self.gpu.free_at)

    def synchronize(self) -> None:
        self.gpu.clock.now = max(self.gpu.clock.now, self.at)

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.at - self.at)


@pytest.mark.parametrize(("queued", "seconds"), [(True, 3e-6), (False, 10e-6)])
def test_short_kernels_are_timed_without_the_hosts_gaps(monkeypatch, queued, seconds):
    clock = Clock(monkeypatch)
    gpu = Gpu(clock)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=gpu))

    def call():
        clock.now += 10e-6  # the host's part
        gpu.work(3e-6)

    assert measure([call], "cuda", queued=queued).seconds == pytest.approx(seconds, rel=0.02)


def copied(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run of the folder alone, without moesim, as on a target."""
    shutil.copytree(FOLDER, tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "harness", "--name", "some_cpu", "--device", "cpu", *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)


@needs_torch
def test_copied_folder_measures_within_its_budget_and_resumes(tmp_path):
    one = ("--out", "out", "--minutes", "0.02", "--dtype", "fp32", "--family", "launch", "--family", "router")
    first = copied(tmp_path, *one)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""  # no progress bar without a terminal
    written = sorted((tmp_path / "out").glob("*.csv"))
    assert first.stdout.split() == [f"out/{path.name}" for path in written] or set(first.stdout.split()) == {
        f"out/{path.name}" for path in written
    }
    before = sum(table.num_rows for path in written for table in measured.read_csv(path))
    assert before >= 1
    shutil.rmtree(tmp_path / "harness")
    assert copied(tmp_path, *one).returncode == 0
    tables = measured.read_folder(tmp_path / "out")
    assert sum(table.num_rows for table in tables) >= before
    for table in tables:
        rows = list(zip(*table.columns.values(), strict=True))
        assert len(rows) == len(set(rows))
        assert {"device", "date", "torch", "cpu", "threads", "command"} <= set(table.provenance)


@needs_torch
def test_unknown_family_is_named(tmp_path):
    run = copied(tmp_path, "--out", "out", "--family", "gem")
    assert run.returncode == 2
    assert "got gem; accepted: launch, gemm" in run.stderr


@needs_torch
@pytest.mark.parametrize(
    "family", ["gemm", "moe", "attention_prefill", "attention_decode", "mla_prefill", "mla_decode", "copy"]
)
def test_every_family_has_cases_that_run(family, tmp_path):
    from moesim.kernels.harness.run import all_cases  # noqa: PLC0415

    cases = all_cases("cpu", ["fp32"], [family], 1e8, tmp_path)
    small = min(cases, key=lambda case: case.working_bytes)
    assert {*small.features, *small.labels} == set(measured.FAMILIES[family])
    for call in small.build(2):
        call()
