"""One self-contained page of a placement: its pictures and the table of methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim.files import write_text
from moesim.report.placement_figures import PICTURES
from moesim.report.style import Document, svg_text


def write_placement_page(document: Document, path: Path) -> Path:
    """HTML page of a ``place`` document; the same document gives the same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("moesim.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pictures = []
    for name, (draw, caption) in PICTURES.items():
        figure = draw(document)
        if figure is not None:
            # drawn here from numbers; matplotlib escapes every text it is given
            pictures.append({"svg": Markup(svg_text(figure, name)), "caption": caption})  # noqa: S704
    about = document["problem"]
    lead = (
        f"{about['num_layers']} layers of {about['num_experts']} experts on {about['num_ranks']} ranks with "
        f"{about['slots_per_rank']} slots ({about['redundant_experts']} replicas a layer). Best on the part "
        f"of the traffic that methods saw: {document['method']}."
    )
    template = environment.get_template("placement.html.j2")
    text = template.render(
        title=f"Placement of {about['model']}", lead=lead, pictures=pictures, rows=_rows(document)
    )
    return write_text(path, text)


def _rows(document: Document) -> list[dict[str, Any]]:
    """Table of methods as text."""
    before = {"method": "before", **document["before"]}
    found = []
    for row in [before, *sorted(document["methods"], key=lambda row: float(row["objective"]))]:
        cells = [
            f"{100 * row['gap_fraction']:.3f} %",
            f"{row['imbalance_ratio_fit']:.3f}",
            f"{row['imbalance_ratio_held_out']:.3f}",
            f"{row['imbalance_ratio_batch']:.3f}",
            f"{row['imbalance_ratio_batch_p95']:.2f}",
            f"{row['ranks_per_token']:.2f}",
            f"{100 * row['same_rank_share']:.1f} %",
            f"{row['moved_experts']:,}",
        ]
        found.append({"name": row["method"], "cells": cells, "notes": "; ".join(row["notes"])})
    return found
