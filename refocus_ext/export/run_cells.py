"""Run by path in a separate process (`python run_cells.py NOTEBOOK UPSTREAM`): a notebook's unedited code cells.

Cells share one namespace, as in Jupyter, in the working directory. Pictures they show are saved there as shown-000.png,
shown-001.png, ... It imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Python 3.10 knows no PYTHONSAFEPATH, and the files beside this one are the project's
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

from PIL import Image


def code_cells(notebook: str) -> list[str]:
    """Sources of the code cells, byte for byte."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def keep_shown_pictures(folder: Path) -> None:
    """From now on pictures are saved instead of shown: there may be no screen."""
    shown = [0]

    def show(self: Image.Image, *_: Any, **__: Any) -> None:
        self.save(folder / f"shown-{shown[0]:03d}.png")
        shown[0] += 1

    setattr(Image.Image, "show", show)


def main(notebook: str, upstream: str) -> None:
    """Executes the cells; exits with 1 after the traceback of one that raises."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # upstream's torch.cuda.amp.autocast
    # The notebook uses autocast on CUDA; without a GPU torch warns that it is disabled, which is expected.
    warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
    keep_shown_pictures(Path.cwd())
    sys.path.insert(0, upstream)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code_cells(notebook), start=1):
        try:
            exec(compile(source, f"<code cell {number}>", "exec"), namespace)
        except Exception as error:
            traceback.print_exc()
            print(f"code cell {number}: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
            raise SystemExit(1) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
