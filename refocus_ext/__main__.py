"""`python -m refocus_ext COMMAND`, which run.sh calls: runs a command and exits with its exit code."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from typing import NoReturn

from refocus_ext.commands import main


def several() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def leave(code: int) -> NoReturn:
    """Exits the process with this code.

    One of several processes runs its exit handlers but skips the interpreter's teardown: during it one of PyTorch's threads
    (gloo, FSDP2) sometimes aborts, and torchrun would report a finished run as failed; after an error NCCL would wait in it for the
    other processes.
    """
    if several():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception:
        if not several():
            raise
        traceback.print_exc()
        code = 1
    leave(code)
