"""``moesim whatif``: fields varied, other scenarios beside, the page."""

import json

import pytest
from typer.testing import CliRunner

from moesim.cli.app import app

STEP, OTHER = "mixtral_8x7b_decode_a100x4_tp", "llama_3_1_70b_decode_h100x4"


def asked(*arguments):
    return CliRunner().invoke(app, ["whatif", *map(str, arguments)])


def test_page_holds_every_variant_and_what_does_not_run(tmp_path):
    out = tmp_path / "out"
    done = asked(STEP, "--vary", "batch.tokens_per_rank=16,32", "--vary", "plan.tp=4,3", "--out", out)
    assert done.exit_code == 0, done.output
    page = (out / "report.html").read_text()
    document = json.loads((out / "whatif.json").read_text())
    ran = [row for row in document["rows"] if "metrics" in row]
    assert [row["label"] for row in ran] == [f"batch.tokens_per_rank={n} plan.tp=4" for n in (16, 32)]
    assert all(row["label"] in page for row in document["rows"])
    assert "What does not run" in page
    assert {path.name for path in out.glob("*.png")} >= {"headline.png", "breakdown.png"}
    again = asked(STEP, "--vary", "batch.tokens_per_rank=16", "--out", out)
    assert again.exit_code == 3
    assert "--force" in again.output


def test_other_scenarios_of_the_same_question_stand_beside():
    document = json.loads(asked(STEP, "--against", OTHER, "--json").stdout)
    assert [row["label"] for row in document["rows"]] == [OTHER]
    alone = json.loads(asked(OTHER, "--vary", "seed=0", "--json").stdout)
    assert document["rows"][0]["metrics"] == alone["rows"][0]["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare"),
        (["--vary", "plan.tp"], "accepted: dotted.path=value"),
        (["--against", "deepseek_r1_serve_h200x8"], "asks 'serve'; accepted: 'decode_step'"),
        (["--against", "no_such"], "no file 'no_such'"),
    ],
)
def test_nothing_to_compare_is_told(arguments, message):
    done = asked(STEP, *arguments)
    assert done.exit_code == 3
    assert message in done.output
