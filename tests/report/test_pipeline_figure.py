"""Picture and timeline of a pipeline."""

import gzip
import json

import numpy as np
import pytest
from pipelines import CHUNKS, geometry_of

from moesim.report import captions
from moesim.report.chrome_trace import write_timeline
from moesim.report.document import Pipeline
from moesim.report.pipeline_figure import pipeline
from moesim.report.style import save_png
from moesim.training.pipeline import PassTimes, record_pipeline
from moesim.training.schedules.base import Pass, schedules
from moesim.units import MS, US


def recorded(name, num_stages=4):
    seconds = {kind: np.array(value * MS) for kind, value in zip(Pass, (2, 2, 2, 4, 5), strict=True)}
    times = PassTimes(seconds, send_s=0.1 * MS, gather_s=MS, reduce_s=MS, optimizer_s=MS)
    return record_pipeline(schedules.build(name), geometry_of(name, num_stages, 1), times)


@pytest.mark.parametrize("name", CHUNKS)
def test_every_schedule_has_a_picture(name, tmp_path):
    view = recorded(name).view
    Pipeline.model_validate(json.loads(json.dumps(view)))
    document = {"views": {"pipeline": view}}
    figure = pipeline(document)
    labels = {text.get_text() for text in figure.axes[0].get_yticklabels()}
    assert labels == {f"stage {stage}" for stage in range(4)}
    numbers = {text.get_text() for text in figure.axes[0].texts} & {"0", "1", "2"}
    assert numbers == {"0", "1", "2"}
    first, second = (save_png(pipeline(document), tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second


def test_title_names_the_stage_that_computes_least():
    spans = [[0, "F", 0, 0, -1, -1, 0.0, 8.0], [1, "F", 0, 0, -1, -1, 8.0, 10.0]]
    view = {"num_stages": 2, "num_chunks": 1, "num_microbatches": 1, "end_s": 10.0, "spans": spans}
    told = captions.pipeline({"views": {"pipeline": view}})
    assert told == "2 stages, 1 microbatches: stages compute 50 % of the step, stage 1 only 20 %"


def test_a_view_without_sense_is_an_error():
    view = recorded("1f1b").view
    view["spans"][3][0] = 7
    with pytest.raises(ValueError, match="accepted: stage"):
        Pipeline.model_validate(view)


def test_no_picture_without_a_pipeline():
    assert pipeline({"views": {}}) is None


def test_timeline_has_every_pass_of_every_stage(tmp_path):
    found = recorded("dualpipe")
    path = write_timeline(found.program, found.recorded, tmp_path / "timeline.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    passes = [e for e in events if e["ph"] == "X" and e.get("cat") == "compute" and e["name"] != "optimizer"]
    assert len(passes) == len(found.view["spans"])
    ends_s = [(event["ts"] + event["dur"]) * US for event in events if event["ph"] == "X"]
    assert max(ends_s) == pytest.approx(found.view["end_s"])
    assert any(event["name"] == "F 0 chunk 0" for event in passes)
    assert any("|" in event["name"] for event in passes)
