"""A self-contained page of sections: a heading, a sentence, a picture, a table; each may be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moesim.files import write_text
from moesim.report.style import svg_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """One section of a page.

    Attributes
    ----------
    heading, text : str
        Plain text; escaped when written.
    figure : Figure, optional
    columns, rows : sequence
        Table of plain texts, ``right`` the numbers of its right-aligned columns.
    """

    heading: str = ""
    text: str = ""
    figure: Figure | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    right: Sequence[int] = ()


def write_plain_page(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page; the same sections give the same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    loader = PackageLoader("moesim.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    shown = [
        {
            **{n: getattr(section, n) for n in ("heading", "text", "columns", "rows", "right")},
            # the element is made here from numbers and escaped names, not taken from a file
            "picture": section.figure and Markup(svg_text(section.figure, f"f{number}")),  # noqa: S704
        }
        for number, section in enumerate(sections)
    ]
    return write_text(path, environment.get_template("plain.html.j2").render(title=title, sections=shown))
