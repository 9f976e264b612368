"""Documentation cannot drift: generated pages are current, commands shown in the README exist."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from moesim.cli.app import COMMANDS, app
from moesim.scenario.schema import file_schema

ROOT = Path(__file__).resolve().parents[2]


def test_scenario_schema_is_current():
    assert json.loads((ROOT / "docs" / "scenario.schema.json").read_text()) == file_schema()


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.yaml")), ids=lambda p: p.stem)
def test_scenarios_name_the_schema(path):
    first = path.read_text().splitlines()[0]
    place = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / place).resolve() == ROOT / "docs" / "scenario.schema.json"


def shown_commands(text):
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("moesim ")]


def test_commands_in_the_readme_exist():
    shown = shown_commands((ROOT / "README.md").read_text())
    assert len(shown) > 5
    group = get_command(app)
    for words in shown:
        command = group.get_command(None, words[0])
        assert command is not None, words
        rest = words[1:]
        if hasattr(command, "commands"):
            assert rest[0] in command.commands, words
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, words


def test_make_targets_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_command_is_in_the_reference():
    reference = (ROOT / "docs" / "commands.md").read_text()
    for name in COMMANDS:
        help_text = CliRunner().invoke(app, [name, "--help"]).output
        assert f"## moesim {name}" in reference
        for option in re.findall(r"^\s+(--[a-z-]+)", help_text, re.MULTILINE):
            assert option in reference, (name, option)


def test_links_in_documents_lead_somewhere():
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
