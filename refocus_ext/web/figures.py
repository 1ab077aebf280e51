"""Pictures with captions as HTML: the pictures are inside it as PNG, so that no file lies on a disk. A click saves one."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from refocus_ext.images.picture import image_bytes

STYLE = """
.figures { --least: max(88px, min(150px, calc((100% - 10px * (var(--n) - 1)) / var(--n) - 1px)));
    display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(var(--least), 1fr)); }
.figures.large { grid-template-columns: repeat(2, minmax(0, 320px)); }
.figures.one { grid-template-columns: minmax(0, 360px); justify-content: center; }
.figures figure, .figures img { margin: 0 !important; }
.figures a { display: block; padding: 0 !important; }
.figures img { width: 100%; aspect-ratio: 1; display: block; image-rendering: pixelated; border-radius: 4px;
    border: 1px solid var(--border-color-primary); box-sizing: border-box; }
.figures.smooth img { image-rendering: auto; }
.figures figcaption { font-size: var(--text-xs); line-height: 1.35; margin-top: 3px; }
.figures-title { font-weight: 600; margin: 14px 0 2px; }
.figures-note { font-size: var(--text-sm); margin: 0 0 8px; }
.figures figcaption span, .figures-note { opacity: 0.75; }
"""


ONE_ROW = 5


class Figure(NamedTuple):
    """A picture, a name in bold under it, and a further line."""

    picture: Image.Image
    name: str
    note: str = ""


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def data_url(picture: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def figures(row: Sequence[Figure], title: str = "", note: str = "", kind: str = "") -> str:
    """HTML of some pictures side by side, as many as fit into the width; more than ONE_ROW in two rows, if they fit.

    Args:
        note: a sentence below the title, on what one sees.
        kind: "" for small pictures, "smooth" if they are drawings, "large" for two in a row, or "one" for a single one.
    """
    head = f'<div class="figures-title">{escape(title)}</div>' if title else ""
    head += f'<div class="figures-note">{escape(note)}</div>' if note else ""
    columns = len(row) if len(row) <= ONE_ROW else -(-len(row) // 2)
    each = "".join(_figure(one, title) for one in row)
    return f'{head}<div class="figures {kind}" style="--n: {columns}">{each}</div>'


def _figure(one: Figure, title: str) -> str:
    words = ", ".join(word for word in (title, one.name) if word)
    file = re.sub(r"[^\w-]+", "-", words).strip("-").lower() or "picture"
    url = data_url(one.picture)
    note = f"<br><span>{escape(one.note)}</span>" if one.note else ""
    return (
        f'<figure><a href="{url}" download="{escape(file)}.png" title="save as {escape(file)}.png">'
        f'<img src="{url}" alt="{escape(words)}"></a><figcaption><b>{escape(one.name)}</b>{note}</figcaption></figure>'
    )


def shown(image_3HW: Tensor) -> Image.Image:
    """(3,H,W) in [0,1] as a picture; values outside are clamped."""
    return Image.fromarray(image_bytes(image_3HW[None])[0])


def shown_change(change_3HW: Tensor) -> tuple[Image.Image, float, float]:
    """A difference of two images in [0,1] over mid-grey, amplified so that three times its RMS reaches black and white.

    Returns:
        the picture, the factor of amplification, and the RMS of the difference on the scale of 0 to 255.
    """
    rms = float(change_3HW.float().square().mean().sqrt())
    gain = 0.5 / (3 * rms) if rms > 1e-6 else 0.0
    return shown(change_3HW * gain + 0.5), gain, 255 * rms
