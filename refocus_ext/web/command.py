"""`bash run.sh web`: checks what can be checked at once, and serves the page until Ctrl-C."""

from __future__ import annotations

import importlib.util
import socket
import sys
from pathlib import Path

from patches import load_upstream
from refocus_ext.engine.devices import pick_device
from refocus_ext.environment import requirements
from refocus_ext.errors import UsageError, named
from refocus_ext.web.models import Models
from refocus_ext.web.options import WebOptions
from refocus_ext.web.students import find_students, find_tokenizer
from refocus_ext.web.work import Worker

HOST, LAST_PORT = "127.0.0.1", 65535


def main(options: WebOptions) -> int:
    """Runs the command; returns its exit code when the page is ended."""
    models = check_options(options)
    print(load_upstream().describe())
    from refocus_ext.web.page import build
    from refocus_ext.web.serving import serve

    exports, worker = None if options.share else Path(options.exports), Worker()
    return serve(
        lambda: build(models, worker, exports), options.port, worker.close, share=options.share, browser=options.open
    )


def check_options(options: WebOptions) -> Models:
    """What the page offers.

    Raises:
        UsageError: there is nothing to show, gradio is missing, or the port is taken.
    """
    tokenizers = {}
    if options.tokenizer:
        with named("--tokenizer"):
            tokenizers = find_tokenizer(options.tokenizer)
    with named("--students"):
        students = find_students(options.students)
    if not students and not tokenizers:
        raise UsageError(
            "this folder has no finished runs/distill-*; train a student with `bash run.sh distill`, or give --students RUN, "
            "or --tokenizer RUN for a page with pictures of your own alone."
        )
    check_gradio()
    check_port(options.port)
    return Models(students, tokenizers, pick_device(options.device))


def check_gradio() -> None:
    """Raises UsageError if the package is missing."""
    if importlib.util.find_spec("gradio") is None:
        (requirement,) = requirements("web")
        raise UsageError(
            f"the page needs the package gradio; `{sys.executable} -m pip install '{requirement}'` installs it."
        )


def check_port(port: int) -> None:
    """Raises UsageError unless a server can listen there."""
    if port > LAST_PORT:
        raise UsageError(f"--port {port} is no port; choose one from 1024 to {LAST_PORT}.")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            other = f"another one, such as --port {port + 1 if 1024 <= port < LAST_PORT else 7861}"
            raise UsageError(f"--port {port} cannot be used ({error.strerror}); choose {other}.") from None
