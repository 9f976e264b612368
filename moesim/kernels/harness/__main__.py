"""``python -m harness``."""

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent.parent))
    __package__ = Path(__file__).parent.name

from .command import main  # noqa: E402, TID252 - the folder also runs outside the package

if __name__ == "__main__":
    main()
