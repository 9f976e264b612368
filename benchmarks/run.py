"""Runs every benchmark beside this file that has a ``main()``, in order of their names."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(names: list[str]) -> None:
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here))
    for path in sorted(here.glob("*.py")):
        if path.name != Path(__file__).name and (not names or path.stem in names):
            module = load(path)
            if hasattr(module, "main"):
                module.main()


if __name__ == "__main__":
    main(sys.argv[1:])
