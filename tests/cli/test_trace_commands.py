import json
import sys

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.traces import read_trace


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def document(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "made.safetensors"
    shape = ("--tokens", 2048, "--layers", 3, "--experts", 32, "--top-k", 4)
    result = run("trace", "generate", "fitted_skew", *shape, "--out", path)
    assert result.exit_code == 0, result.output
    return path


def test_generate_show_stats(made):
    shown = document("trace", "show", made)["trace"]
    assert (shown["num_experts"], shown["top_k"], shown["layer_indices"]) == (32, 4, [0, 1, 2])
    assert shown["prefill_tokens"] + shown["decode_tokens"] == shown["tokens"] == 2048
    assert shown["evidence"] == "assumed"
    stats = document("trace", "stats", made)
    assert 0 < stats["metrics"]["gini"]["value"] < 1
    assert stats["metrics"]["imbalance_ratio"]["value"] >= 1
    assert 4 <= stats["metrics"]["touched_experts"]["value"] <= 32
    assert [row["layer"] for row in stats["rows"]] == [0, 1, 2]


def test_tables_name_the_next_command(made):
    shown = run("trace", "show", made)
    assert "fitted_skew" in shown.stdout
    text = run("trace", "stats", made, "--per-layer", "--phase", "decode")
    assert text.exit_code == 0
    assert "1,024 tokens" in text.stdout
    assert "By layer" in text.stdout


def test_same_seed_same_bytes_other_seed_other_bytes(made, tmp_path):
    shape = ("--tokens", 2048, "--layers", 3, "--experts", 32, "--top-k", 4)
    again, other = tmp_path / "again.safetensors", tmp_path / "other.safetensors"
    document("trace", "generate", "fitted_skew", *shape, "--out", again)
    document("trace", "generate", "fitted_skew", *shape, "--out", other, "--seed", 1)
    assert again.read_bytes() == made.read_bytes() != other.read_bytes()
    assert document("trace", "stats", made) == document("trace", "stats", again)


def test_parameters_and_fit(made, tmp_path):
    shape = ("--tokens", 300, "--layers", 2, "--experts", 64, "--top-k", 6)
    out = tmp_path / "o.safetensors"
    document("trace", "generate", "zipf", *shape, "--param", "exponent=0.9", "--out", out)
    assert "exponent=0.9" in read_trace(out).info.source
    document("trace", "generate", "fitted_skew", *shape, "--fit", made, "--out", out, "--force")
    assert read_trace(out).num_experts == 64


def test_split(made, tmp_path):
    answer = document("trace", "split", made, "--out", tmp_path / "parts", "--fit-fraction", 0.25)
    assert answer["metrics"]["fit_tokens"]["value"] == 512
    assert read_trace(tmp_path / "parts" / "heldout.safetensors").num_tokens == 1536


ZIPF = "trace generate zipf --layers 1 --experts 4"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("trace show no_such_trace", "no file"),
        ("trace stats {made} --domain poetry", "accepted: synthetic"),
        ("trace stats {made} --phase training", "accepted: prefill, decode"),
        ("trace split {made} --out {dir}/p --fit-fraction 1.5", "between 0 and 1"),
        ("trace generate zip --layers 1 --experts 4 --top-k 2 --out {dir}/x", "did you mean 'zipf'"),
        ("{zipf} --top-k 5 --out {dir}/x", "top_k"),
        ("{zipf} --top-k 2 --out {dir}/x --param skew", "dotted.path=value"),
        ("{zipf} --top-k 2 --out {dir}/x --fit {made}", "fitted_skew"),
        ("{zipf} --top-k 2 --out {made}", "exists"),
        ("capture {dir} --text {dir}/none.txt --out {dir}/x", "cannot be read as text"),
        ("capture {dir} --text {made} --out {dir}/x", "cannot be read as text"),
        ("capture {dir} --text x --out {made}", "exists"),
    ],
)
def test_wrong_input_is_exit_code_3(made, tmp_path, line, word):
    result = run(*(part.format(made=made, dir=tmp_path) for part in line.replace("{zipf}", ZIPF).split()))
    assert result.exit_code == 3, result.output
    assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_damaged_trace_is_exit_code_3(made):
    made.write_bytes(made.read_bytes()[:-100])
    result = run("trace", "stats", made)
    assert result.exit_code == 3
    assert made.name in result.stderr


def test_capture_without_torch_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    text = tmp_path / "a.txt"
    text.write_text("words")
    result = run("capture", tmp_path, "--text", text, "--out", tmp_path / "o")
    assert result.exit_code == 3
    assert "pip install moesim[capture]" in result.stderr
