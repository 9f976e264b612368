import gzip
import json
import re
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.errors import InputError
from moesim.report import captions
from moesim.report import page as page_module
from moesim.report.chrome_trace import excerpt, write_timeline
from moesim.report.document import check_document
from moesim.report.figures import FIGURES, drawn
from moesim.report.page import page_text
from moesim.report.style import INK, PAPER, byte_ticks, save_pngs
from moesim.scenario.compare import compare_placements
from moesim.scenario.resolve import resolve
from moesim.scenario.run import run
from moesim.scenario.schema import PlacementSection
from moesim.units import GIB, MIB

SMALL = [
    "model=qwen3_30b_a3b",
    "plan.attention_dp=16",
    "plan.ep=16",
    "routing.generator=zipf",
    "routing.num_batches=1",
    "batch.tokens_per_rank=8",
    "dtypes.weights=bf16",
    "dtypes.experts=bf16",
    "bands.samples=4",
]


@pytest.fixture(scope="module")
def outcome():
    sections = [PlacementSection(), PlacementSection(method="eplb", redundant_experts=16)]
    return compare_placements(resolve("deepseek_v3_decode_h200x32", SMALL), sections)


OF_OTHERS = {"latency_curves", "service_over_time", "batches", "cache_curve", "lanes", "pipeline", "crowd"}
OF_A_STEP = set(FIGURES) - OF_OTHERS


@pytest.fixture(scope="module")
def document(outcome):
    made = outcome.result.document()
    made["views"]["timeline"] = excerpt(outcome.simulated.program, outcome.simulated.recorded)
    return json.loads(json.dumps(made))


class Checker(HTMLParser):
    """Collects open tags; void elements need no end."""

    VOID = frozenset({"meta", "br", "img", "path", "use", "rect", "line"})

    def __init__(self):
        super().__init__()
        self.open = []
        self.wrong = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


@pytest.fixture(scope="module")
def page(document):
    return page_text([document, document], [drawn(document), drawn(document)], title="Two runs")


def test_page_is_well_formed_and_self_contained(page):
    checker = Checker()
    checker.feed(page)
    assert checker.wrong == []
    assert checker.open == []
    links = re.findall(r'(?:src|href)="(?!#)([^"]{0,60})', page)
    assert all(link.startswith("data:image/png;base64,") for link in links), links
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    assert "<script" not in page
    assert len(page) < 2_000_000


def test_figures_of_a_page_share_no_ids_and_point_at_their_own(page):
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page))
    assert {a or b for a, b in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)} <= set(ids)


def test_figures_follow_the_ink_and_paper_of_the_page(page):
    assert "fill: currentColor" in page
    assert "stroke: var(--paper)" in page
    assert not re.search(rf"(fill|stroke): ({INK}|{PAPER})", page)


def test_page_holds_answer_bands_sources_and_scenario(document, page):
    assert document["answer"].split("(")[0] in page
    for name in document["metrics"]:
        assert name in page
    assert "NVIDIA" in page
    assert "tokens_per_rank: 8" in page
    assert page.count("<figure") == 2 * len(OF_A_STEP)


def test_same_document_same_bytes(page):
    first, second = (part.partition("</section>")[0] for part in page.split("<section")[1:])
    assert first.replace("run-1", "run-2") == second


def test_hostile_strings_are_inert(document):
    attack = "<script>alert(1)</script>"
    changed = json.loads(json.dumps(document))
    changed["title"] = changed["answer"] = changed["limiter"] = attack
    changed["warnings"] = [attack]
    changed["breakdown"][0]["name"] = attack
    changed["sensitivity"][0]["label"] = attack
    changed["views"]["comparison"][0]["label"] = attack
    changed["scenario"][attack] = {attack: attack}
    changed["sources"][0]["source"] = changed["sources"][1]["grade"] = attack
    changed["views"]["timeline"]["rows"][0]["spans"][0][0] = attack
    changed["memory"]["per_rank"][0]["parts"][attack] = 1e11
    page = page_text([changed], [drawn(changed)], title=attack)
    assert "<script" not in page
    assert page.count("&lt;script") > 10


@pytest.mark.parametrize(
    "name", ["$\\frac{$", 'x" id="y', "\u6df7\u5408\u4e13\u5bb6", "a\nb", "long " * 60, ""]
)
def test_names_of_any_shape_are_drawn_as_they_are(document, name):
    row = document["breakdown"][0] | {"name": name}
    bare = {**document, "views": {}, "memory": {}, "sensitivity": [], "breakdown": [row]}
    page = page_text([bare], [drawn(bare)], title=name)
    assert page.count("<figure") == 1


def test_a_document_without_views_still_makes_a_page(document):
    bare = {**document, "views": {}, "memory": {}, "sensitivity": [], "sources": []}
    check_document(bare, "bare")
    page = page_text([bare], [drawn(bare)], title="bare")
    assert page.count("<figure") == 1
    assert "What limits it" not in page


def test_captions_state_what_the_numbers_say(document):
    loads = [[1.0, 1.0, 4.0, 2.0], [2.0, 2.0, 2.0, 2.0]]
    view = {"layers": [3, 4], "tokens": loads}
    variants = [{"label": "linear", "tokens": loads}]
    traffic = {"scope": "rank", "scale_up": [[0.0, 3.0], [1.0, 0.0]], "scale_out": [[0.0, 0.0], [0.0, 0.0]]}
    known = {
        "headline": "tpot_s",
        "breakdown": [
            {"name": "dense ffn", "kind": "compute", "fraction": 0.75},
            {"name": "dispatch", "kind": "all_to_all", "fraction": 0.25},
        ],
        "sensitivity": [{"label": "a", "change_fraction": 0.3}, {"label": "NIC x2", "change_fraction": -0.2}],
        "views": {
            "expert_load": view,
            "rank_load": {"layers": [3, 4], "variants": variants},
            "traffic": traffic,
        },
    }
    assert captions.breakdown(known) == "Dense ffn: 75 % of the critical path; communication: 25 %"
    assert captions.sensitivity(known) == "NIC x2 would help most: -20 %"
    assert captions.expert_load(known) == "Expert 2 of layer 3 gets 2.0 times the mean of its layer"
    assert captions.rank_load(known) == "Busiest rank: 1.50 times the mean on average, 2.00 in layer 3"
    assert captions.traffic(known).endswith("stay in the scale-up fabric; rank 0 sends 1.50 times the mean")
    variants.append({"label": "ilp", "tokens": [[2.0] * 4] * 2})
    assert captions.rank_load(known).endswith("linear 1.50, ilp 1.00")


@pytest.mark.parametrize("high_bytes", [1.0, 700.0, 4.1 * MIB, 139 * MIB, 140.4 * GIB, 3e15])
def test_byte_ticks_are_few_and_plain(high_bytes):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    byte_ticks(axes.xaxis, high_bytes)
    texts = [axes.xaxis.get_major_formatter()(tick, 0) for tick in axes.get_xticks()]
    assert 2 <= len(texts) <= 8
    assert all(re.fullmatch(r"\d{1,3} ([KMGT]i)?B|\d{4,} TiB", text) for text in texts), texts


def test_values_are_told_with_one_unit():
    metric = {"value": 0.05, "low": 0.0409, "high": 0.0625, "unit": "s"}
    page = page_module._range(metric, "low", "high")
    assert page == "40.9 to 62.5 ms"
    assert page_module._range(metric | {"low": 0.0009}, "low", "high") == "900 us to 62.5 ms"
    assert page_module.place_in_band(metric | {"value": 0.0517}) == "50.0"
    source = {"path": "calibration.send.base_s", "unit": "", "value": 4e-6}
    assert page_module.described(source) == "4.00 us"
    assert page_module.described(source | {"unit": "bytes_per_s", "value": 4.8e12}) == "4.80 TB/s"
    assert page_module.described(source | {"path": "a.name", "value": "fat_tree"}) == "fat_tree"


def test_figures_are_png_files_and_not_blank(document, tmp_path):
    from matplotlib.image import imread

    written = save_pngs(drawn(document), tmp_path)
    assert {path.stem for path in written} == OF_A_STEP
    for path in written:
        pixels = imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 100
        assert pixels.std() > 0.02, path


def test_timeline_opens_and_its_slices_never_overlap(outcome, tmp_path):
    simulated = outcome.simulated
    path = write_timeline(simulated.program, simulated.recorded, tmp_path / "t.json.gz")
    again = write_timeline(simulated.program, simulated.recorded, tmp_path / "u.json.gz")
    assert path.read_bytes() == again.read_bytes()
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    names = {(e["pid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"}
    assert (0, "compute") in names
    assert (15, "comm") in names
    tracks = {}
    for event in slices:
        tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    assert len(tracks) == 32
    for spans in tracks.values():
        spans.sort()
        assert all(b[0] >= a[1] - 1e-6 for a, b in zip(spans, spans[1:], strict=False))
    makespan_us = simulated.recorded.makespan_ps() / 1e6
    assert max(e["ts"] + e["dur"] for e in slices) == pytest.approx(makespan_us)


def test_run_writes_a_folder_and_report_draws_it_again(tmp_path):
    runner = CliRunner()
    out = tmp_path / "run"
    result = runner.invoke(
        app, ["run", "llama_3_1_70b_decode_h100x4", "--out", str(out), "--json", "--no-timing"]
    )
    assert result.exit_code == 0, result.output
    names = {path.name for path in out.iterdir()}
    assert {"run.json", "report.html", "timeline.json.gz", "breakdown.png"} <= names
    page = (out / "report.html").read_bytes()
    assert runner.invoke(app, ["report", str(out)]).exit_code == 0
    assert (out / "report.html").read_bytes() == page
    assert runner.invoke(app, ["report", str(out), str(out)]).exit_code == 3
    both = runner.invoke(app, ["report", str(out), str(out), "--out", str(tmp_path / "both")])
    assert both.exit_code == 0
    assert (tmp_path / "both" / "report.html").read_text().count("<section") == 2
    refused = runner.invoke(app, ["run", "llama_3_1_70b_decode_h100x4", "--out", str(out)])
    assert refused.exit_code == 3
    assert "--force" in refused.stderr


@pytest.mark.parametrize("content", ["", "{", "[]", '{"command": "place"}', '{"command": "run"}', "\x00\xff"])
def test_report_of_something_else_is_one_clear_error(tmp_path, content):
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 3
    assert "run.json" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run.json"}


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["metrics", "tpot_s", "value"], float("nan"), "metrics.tpot_s.value"),
        (["headline"], "speed_s", "speed_s"),
        (["views", "expert_load", "tokens", 0], [1.0], "lengths"),
        (["views", "expert_load", "layers"], [], "rows"),
        (["views", "traffic", "scale_out"], [[1.0]], "views.traffic: scale_up"),
        (["views", "timeline", "rows", 0, "spans", 0], [1, 2, 3, 4, 5], "timeline.rows.0: got"),
        (["memory", "capacity_bytes"], -1, "memory.capacity_bytes"),
        (["breakdown", 0, "seconds"], "long", "breakdown.0.seconds"),
        (["warnings"], None, "warnings"),
    ],
)
def test_a_damaged_document_is_told_by_path(document, path, value, told):
    check_document(document, "run.json")
    damaged = json.loads(json.dumps(document))
    place = damaged
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InputError, match=re.escape(told)):
        check_document(damaged, "run.json")


def test_a_scenario_too_deep_to_show_is_refused(document):
    deep = {}
    for _ in range(900):
        deep = {"a": deep}
    with pytest.raises(InputError, match="deeper"):
        check_document({**document, "scenario": deep}, "run.json")


def test_plain_run_imports_no_drawing(monkeypatch):
    import subprocess
    import sys

    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom moesim.cli.app import app\n"
        "r = CliRunner().invoke(app, ['run', 'llama_3_1_70b_decode_h100x4', '--json'])\n"
        "assert r.exit_code == 0\n"
        "print(sorted({'matplotlib', 'jinja2', 'pandas', 'torch', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_run_of_a_dense_model_has_no_routing_views():
    document = run(resolve("llama_3_1_70b_decode_h100x4", ["bands.samples=4"])).result.document()
    assert set(document["views"]) == {"algorithms"}
