"""Serves the page on 127.0.0.1: nothing is sent to anyone, and no file of this machine can be read through it."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

from refocus_ext.errors import RunFailed
from refocus_ext.web.figures import STYLE
from refocus_ext.web.uploads import MOST_BYTES

HOST = "127.0.0.1"
WAITING = 32  # requests in the queue; further ones are refused
SESSIONS = 100  # whose pictures are kept in memory
PAGE_STYLE = (
    STYLE
    + """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.status p { font-size: var(--text-sm); overflow-wrap: anywhere; }
.failed { color: var(--error-text-color, #b91c1c); }
.mono textarea { font-family: var(--font-mono); font-size: var(--text-xs); }
footer { display: none !important; }
"""
)


def serve(
    build: Callable[[], Any], port: int, stop: Callable[[], None], *, share: bool = False, browser: bool = False
) -> int:
    """Serves the page that `build` makes until Ctrl-C or SIGTERM, then calls `stop`; returns the exit code."""
    ended = Event()
    with _ended_by_signals(ended), served(build, port, share=share, browser=browser) as (address, public):
        print(f"the page: {address}  (Ctrl-C ends it)", flush=True)
        if share:
            print(f"public, for everyone who has the link: {public}", flush=True)
        ended.wait()
        print("\nending ...", flush=True)
        stop()
    return 0


@contextlib.contextmanager
def served(
    build: Callable[[], Any], port: int, *, share: bool = False, browser: bool = False
) -> Iterator[tuple[str, str | None]]:
    """Inside, the page is served; yields its address, and the public one. Uploads lie in a folder that is removed at the end.

    Raises:
        RunFailed: the server, or the public link, could not be started.
    """
    with tempfile.TemporaryDirectory(prefix="refocus-web-") as folder:
        prepare_environment(folder)
        page = build()
        page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
        try:
            _, address, public = page.launch(server_port=port, share=share, inbrowser=browser, **settings(share))
        except OSError as error:
            raise RunFailed(f"the page could not be served on port {port} ({error}).") from error
        try:
            if share and not public:
                raise RunFailed("no public link could be made: gradio's servers cannot be reached; omit it.")
            yield address.rstrip("/"), public
        finally:
            page.close(verbose=False)


def settings(share: bool) -> dict[str, Any]:
    """gradio's arguments of `launch`: closed wherever it can be."""
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # A site whose name is made to lead to 127.0.0.1 is refused: its name is not ours. A public link has another one.
    ours = [] if share else [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]
    return {
        "server_name": HOST,
        "app_kwargs": {"middleware": ours},
        "prevent_thread_lock": True,
        "quiet": True,
        "show_error": False,
        "allowed_paths": [],
        "max_file_size": MOST_BYTES,
        "state_session_capacity": SESSIONS,
        "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css": PAGE_STYLE,
        "footer_links": [],
    } | dict.fromkeys(("enable_monitoring", "ssr_mode", "pwa", "mcp_server", "run_history"), False)


def prepare_environment(folder: str) -> None:
    """Takes away gradio's own settings, which could open the page to others, and gives it ours.

    Args:
        folder: where it keeps uploads.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ["OTEL_SDK_DISABLED"] = "true"
    for name in ("NO_PROXY", "no_proxy"):  # gradio asks its own server whether it is up
        os.environ[name] = ",".join(word for word in (os.environ.get(name), HOST, "localhost") if word)


@contextlib.contextmanager
def _ended_by_signals(ended: Event) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM set the event."""
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
