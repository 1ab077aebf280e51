"""Options of `web`. Imports no torch, so that help is instant."""

from __future__ import annotations

from refocus_ext.options import shared
from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import positive

WHAT = Heading("what it shows")
PAGE = Heading("the page")
SPEED = Heading("speed")


class WebOptions(Options):
    """
    Opens a page for the browser of this machine, on 127.0.0.1, until Ctrl-C: sample a student and see the image come into
    focus scale by scale, take a picture of your own apart, repaint a part of it, compare two students, export one. It
    needs the package gradio, which run.sh installs when the page is first asked for.

      bash run.sh web
      bash run.sh web --students runs/distill-d16 published/ --open
    """

    students: tuple[str, ...] = WHAT(
        (),
        "students that can be chosen, or folders of them: distill runs, folders with var_dN.pth and its VAE, or a "
        "var_dN.pth; default: runs/distill-*",
        metavar="RUN",
        nargs="+",
    )
    tokenizer: str = WHAT(
        "", "also a tokenizer, for pictures of your own: its run, or a file of VQVAE weights", metavar="RUN|FILE"
    )
    exports: str = WHAT(
        "exports", "folder in which students are exported, the only one the page writes to", metavar="DIR"
    )

    port: int = PAGE(7860, "port of 127.0.0.1", positive(int))
    open: bool = PAGE(False, "open the page in this machine's browser")
    share: bool = PAGE(
        False,
        "also make a public link, through gradio's servers: whoever has it can use the page; such a page does not export",
    )

    device: str = shared.device(SPEED)
