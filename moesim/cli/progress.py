"""A bar on stderr for work that takes seconds; silent in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """Bar of ``total`` pieces; the yielded function is called with the name of each finished one."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)

        def tick(name: str) -> None:
            shown.update(task, description=f"{what}: {name}", advance=1)

        yield tick


@contextmanager
def counting(what: str) -> Iterator[Callable[[int], None]]:
    """Running count on stderr; the yielded function is called with how many are done."""
    with _spinner(what) as say:
        yield lambda done: say(f"{what}: {done:,}")


@contextmanager
def tallied(what: str) -> Iterator[Callable[[str, int], None]]:
    """Running counts on stderr; the yielded function is called with what was done to how many more."""
    counts: dict[str, int] = {}
    with _spinner(what) as say:

        def more(deed: str, count: int) -> None:
            counts[deed] = counts.get(deed, 0) + count
            say(f"{what}: " + ", ".join(f"{number:,} {name}" for name, number in counts.items()))

        yield more


@contextmanager
def naming(what: str) -> Iterator[Callable[[str], None]]:
    """Name of what is being done on stderr; the yielded function is called with each."""
    with _spinner(what) as say:
        yield lambda name: say(f"{what}: {name}")


@contextmanager
def _spinner(text: str) -> Iterator[Callable[[str], None]]:
    """Line that turns on stderr; the yielded function changes its text."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(text, total=None)
        yield lambda text: shown.update(task, description=text)
