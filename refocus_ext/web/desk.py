"""How the page's buttons start work: one thing at a time, told while it runs, and one sentence where it fails."""

from __future__ import annotations

import html
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.web.models import Models
from refocus_ext.web.work import Tell, Worker

Values = dict[Any, Any]  # what components show from now on
Work = Callable[..., None]  # (tell, values of the inputs): calls tell with `Values` as often as it likes
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "work", "concurrency_limit": 1, "api_visibility": "private"}
FAULT = "This is a fault of the program, not yours: the terminal in which the page was started says where"


class Desk:
    """What the tabs share: the models, the worker, and the chosen student.

    Attributes:
        student: the menu of students; None on a page without any.
        guidances: the tabs' fields for the guidance, which the choice of a student fills.
    """

    def __init__(self, models: Models, worker: Worker) -> None:
        self.models, self.worker = models, worker
        self.student: Any = None
        self.guidances: list[Any] = []

    def on(
        self, triggers: Sequence[Any], work: Work, inputs: Sequence[Any], outputs: Sequence[Any], status: Any
    ) -> None:
        """Runs `work` when one of `triggers` (a component's events) comes; `status` says how far it is, and what went wrong."""

        def handle(*values: Any) -> Iterator[Values]:
            yield from self.run(work, status, *values)

        for trigger in triggers:  # each for itself: otherwise one would be ignored while the other one is at work
            trigger(
                handle,
                list(inputs),
                [status, *outputs],
                show_progress="minimal",
                show_progress_on=[status],
                # A second click on a button is one too many, but the last choice from a menu counts.
                trigger_mode="once" if trigger.event_name == "click" else "always_last",
                **ONE_AT_A_TIME,
            )

    def run(self, work: Work, status: Any, *values: Any) -> Iterator[Values]:
        """What the work tells; where it failed, a sentence. (gradio's own error would cover it with a badge.)"""

        def told(tell: Tell[Values]) -> None:
            work(tell, *values)

        try:
            yield from self.worker.steps(told)
        except (UsageError, RunFailed) as error:
            yield {status: in_red(re.sub(r"^--[a-z-]+: ", "", str(error)))}
        except Exception as error:
            traceback.print_exc()
            yield {status: in_red(f"{FAULT} ({type(error).__name__}).")}


def in_red(sentence: str) -> str:
    """As Markdown."""
    return f'<span class="failed" role="alert">{html.escape(sentence)}</span>'


def at_once(trigger: Any, show: Callable[..., Values], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """For what takes no time, such as drawing a box: does not wait for the work of others."""
    trigger(show, list(inputs), list(outputs), api_visibility="private", show_progress="hidden", concurrency_limit=4)
