"""Generated pages: the JSON Schema of scenario files and the command reference. Run by ``make docs``."""

import json
from pathlib import Path

from typer.testing import CliRunner

from moesim.cli.app import COMMANDS, app
from moesim.scenario.schema import file_schema

DOCS = Path(__file__).parent


def schema_text() -> str:
    """Scenario schema as JSON text."""
    return json.dumps(file_schema(), indent=2) + "\n"


def reference_text() -> str:
    """Help of every command, as Markdown."""
    head = f"# Commands\n\nGenerated from `--help` by `make docs`.\n\n{_help()}"
    return head + "".join(f"\n## moesim {name}\n\n{_help(name)}" for name in COMMANDS)


def _help(*words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "100"}, terminal_width=100)
    lines = [line.rstrip() for line in result.output.strip().splitlines()]
    return "```\n" + "\n".join(lines) + "\n```\n"


PAGES = {"scenario.schema.json": schema_text, "commands.md": reference_text}


def main() -> None:
    """Write every generated page."""
    for name, text in PAGES.items():
        (DOCS / name).write_text(text())


if __name__ == "__main__":
    main()
