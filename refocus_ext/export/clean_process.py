"""The environment of a process that has the packages of this one, wherever they are installed, and not this project."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def without_project() -> dict[str, str]:
    """Not `python -I`, which would leave out packages of PYTHONPATH and of `pip install --user` too."""
    kept = [path for path in sys.path if path and ROOT not in (Path(path).resolve(), *Path(path).resolve().parents)]
    # packages in an environment inside the project's folder are not of the project
    kept += [path for path in sys.path if path and path not in kept and "site-packages" in Path(path).parts]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return environment | {"PYTHONPATH": os.pathsep.join(kept), "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}
