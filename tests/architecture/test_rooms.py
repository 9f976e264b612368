"""The rooms of the design: imports point down, heavy libraries stay in their one room, pieces stay small."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "moesim"

FLOORS = [
    {"errors", "units", "registry", "evidence", "files"},
    {"hardware", "model", "traces", "parallel", "engine"},
    {"kernels", "network", "metrics"},
    {"steps", "memory"},
    {"serving", "training", "offload", "placement"},
    {"scenario"},
    {"validate"},
    {"report"},
    {"cli"},
]
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}

# libraries and the only places that may import them
HOMES = {
    "simpy": {"engine"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "torch": {"traces/capture", "traces/torch_file.py", "kernels/harness", "cli/calibrate_measure.py"},
    "transformers": {"traces/capture", "kernels/harness"},
    "pulp": {"placement"},
    "highspy": {"placement"},
    "networkx": {"network/topology.py"},
    "pandas": {"scenario/frames.py"},
    "scipy": {"kernels/fit"},
    "typer": {"cli"},
    "rich": {"cli"},
}
MODULE_LINES = 400
FUNCTION_LINES = 60
PUBLIC_METHODS = 10


def modules() -> list[Path]:
    """Modules of all rooms; the package's own two files stand above every room."""
    own = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}
    return sorted(p for p in PACKAGE.rglob("*.py") if "_data" not in p.parts and p not in own)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


KINDS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Call, ast.Expr)


@cache
def nodes(path: Path) -> list[ast.AST]:
    """What the rules look at of a module, wherever it stands; read once for all of them."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, KINDS)]


def import_nodes(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Every import of a module."""
    return [node for node in nodes(path) if isinstance(node, ast.Import | ast.ImportFrom)]


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every absolute import."""
    found = []
    for node in import_nodes(path):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif node.module and not node.level:
            found.append((node.lineno, node.module))
    return found


def test_imports_point_down():
    wrong = []
    for path in modules():
        room = room_of(path)
        for line, module in imports_of(path):
            parts = module.split(".")
            if parts[0] != "moesim" or len(parts) == 1:
                continue
            other = parts[1]
            if other not in LEVEL:  # a name of the package itself, such as __version__
                continue
            if other != room and LEVEL.get(room, 99) != 0 and LEVEL[other] >= LEVEL[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} {room} -> {other}")
    assert not wrong, "\n".join(wrong)


def test_every_module_has_a_floor():
    rooms = {room_of(p) for p in modules()} - {"__init__", "__main__"}
    assert rooms <= set(LEVEL), rooms - set(LEVEL)


@pytest.mark.parametrize("library", sorted(HOMES))
def test_heavy_library_stays_home(library):
    homes = HOMES[library]
    wrong = []
    for path in modules():
        place = path.relative_to(PACKAGE).as_posix()
        if any(place == home or place.startswith(home) for home in homes):
            continue
        wrong += [f"{place}:{line}" for line, module in imports_of(path) if module.split(".")[0] == library]
    assert not wrong, wrong


def test_no_relative_or_star_imports():
    wrong = []
    for path in modules():
        if STANDALONE in path.parents:
            continue
        for node in import_nodes(path):
            if isinstance(node, ast.ImportFrom) and (node.level or any(a.name == "*" for a in node.names)):
                wrong.append(f"{path}:{node.lineno}")
    assert not wrong, wrong


def test_modules_and_functions_stay_small():
    wrong = []
    for path in modules():
        text = path.read_text()
        place = path.relative_to(ROOT)
        if text.count("\n") > MODULE_LINES:
            wrong.append(f"{place}: {text.count(chr(10))} lines > {MODULE_LINES}")
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.end_lineno - node.body[0].lineno + 1
                docstring = ast.get_docstring(node, clean=False)
                if docstring is not None:
                    body -= docstring.count("\n") + 1
                if body > FUNCTION_LINES:
                    wrong.append(f"{place}:{node.lineno} {node.name}: {body} lines > {FUNCTION_LINES}")
            if isinstance(node, ast.ClassDef):
                # properties read like attributes; what is limited is what a class can be asked to do
                public = [
                    f
                    for f in node.body
                    if isinstance(f, ast.FunctionDef)
                    and not f.name.startswith("_")
                    and not any("property" in ast.unparse(d) for d in f.decorator_list)
                ]
                if len(public) > PUBLIC_METHODS:
                    wrong.append(f"{place}:{node.lineno} {node.name}: {len(public)} public methods")
    assert not wrong, "\n".join(wrong)


STANDALONE = PACKAGE / "kernels" / "harness"
"""Copied to machines without moesim: imports itself relatively, and nothing of the rest."""


def test_the_harness_needs_nothing_of_the_package():
    wrong = []
    for path in sorted(STANDALONE.glob("*.py")):
        wrong += [f"{path.name}:{line}" for line, module in imports_of(path) if module.startswith("moesim")]
    assert not wrong, wrong


UNIT_LITERAL = re.compile(r"(?<![\w.])(1e-?3|1e-?6|1e-?9|1e-?12|1024\b|2 ?\*\* ?[1-4]0)(?![\w.])")


def test_unit_literals_live_in_units():
    wrong = []
    for path in modules():
        if path.name == "units.py" or STANDALONE in path.parents:
            continue
        docstrings = {
            line
            for node in nodes(path)
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            for line in range(node.lineno, node.end_lineno + 1)
        }
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("#")[0]
            if number not in docstrings and UNIT_LITERAL.search(code):
                wrong.append(f"{path.relative_to(ROOT)}:{number} {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_library_code_never_prints_exits_or_reads_the_clock():
    forbidden = re.compile(r"\b(print|sys\.exit|exit|os\.chdir|np\.random\.seed|datetime\.now)\(|\bpickle\b")
    wrong = []
    for path in modules():
        if room_of(path) == "cli":
            continue
        for node in nodes(path):
            if isinstance(node, ast.Call) and forbidden.search(ast.unparse(node.func) + "("):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.Import) and any(a.name == "pickle" for a in node.names):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} pickle")
    assert not wrong, "\n".join(wrong)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from moesim.cli.app import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "assert 'place' in result.output\n"
        "heavy = {'numpy', 'pandas', 'matplotlib', 'scipy', 'networkx', 'pulp', 'torch', 'simpy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout


def test_public_surface():
    import moesim

    assert moesim.__all__ == [
        "CheckFailed",
        "InfeasibleError",
        "InputError",
        "MoesimError",
        "frame",
        "load_cluster",
        "load_device",
        "load_model",
        "read_trace",
        "resolve",
        "run",
        "vary",
    ]
    for name in moesim.__all__:
        assert callable(getattr(moesim, name))
