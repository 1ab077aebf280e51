"""The pictures of `sample`: a grid, a strip from blurred to sharp, two students side by side, an edited image."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from refocus_ext.images.picture import font_of, grid, image_bytes
from refocus_ext.sampling.editing import Edit
from refocus_ext.sampling.student import Student

COLUMNS = 8


def side_of(student: Student) -> int:
    """The size of one image in a picture, pixels."""
    return max(128, min(256, student.image_size))


def shorten(text: str, width: int) -> str:
    """The text, shortened with dots if it is wider than `width` pixels as a caption."""
    font = font_of(12)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def as_drawn(images_B3HW: Tensor) -> list[Tensor]:
    """Images in [0,1] converted to [-1,1] for `picture.grid`, after rounding to 8 bits."""
    values = Tensor(image_bytes(images_B3HW)).div(127.5).sub(1)
    return list(values.permute(0, 3, 1, 2))


def draw_grid(student: Student, images_B3HW: Tensor, labels: Sequence[int], title: str) -> Image.Image:
    """Images with the names of their classes, at most eight in a row."""
    side, images = side_of(student), as_drawn(images_B3HW)
    captions = [shorten(student.class_name(label), side) for label in labels]
    rows = [images[i : i + COLUMNS] for i in range(0, len(images), COLUMNS)]
    texts = [captions[i : i + COLUMNS] for i in range(0, len(images), COLUMNS)]
    return grid(rows, [""] * len(rows[0]), texts, title=title, side=side)


def draw_strip(student: Student, prefixes_SB3HW: Sequence[Tensor], labels: Sequence[int], title: str) -> Image.Image:
    """One row per image, one column per scale: the image decoded from the tokens so far."""
    side, total, headers = min(128, side_of(student)), 0, []
    for pn in student.geometry.patch_nums:
        total += pn * pn
        headers.append(f"{pn}x{pn}\n{total} token{'s' * (total > 1)}")
    columns = [as_drawn(images) for images in prefixes_SB3HW]
    rows = [[column[i] for column in columns] for i in range(len(labels))]
    names = [shorten(student.class_name(label), 160) for label in labels]
    return grid(rows, headers, names=names, title=title, side=side)


def draw_comparison(
    students: Sequence[Student], names: Sequence[str], images: Sequence[Tensor], labels: Sequence[int], title: str
) -> Image.Image:
    """One row per student, one column per class; images in a column use the same seed."""
    side = max(side_of(student) for student in students)
    headers = [shorten(students[0].class_name(label), side) for label in labels]
    return grid([as_drawn(row) for row in images], headers, names=names, title=title, side=side)


def draw_edit(student: Student, result: Edit, labels: Sequence[int], title: str) -> Image.Image:
    """Original, the kept part, the VAE's reconstruction, and the edits."""
    side = side_of(student)
    stays = result.original_3HW * result.kept_HW + 0.5 * ~result.kept_HW
    given = [result.original_3HW, stays, result.reconstruction_3HW]
    row = [as_drawn(image.unsqueeze(0))[0] for image in given] + as_drawn(result.edited_B3HW)
    names = ["original", "stays", "its tokens, decoded"] + [
        shorten(student.class_name(label), side) for label in labels
    ]
    captions = ["", "", ""] + [f"kept part {value:.1f} dB" for value in result.kept_psnr()]
    return grid([row], names, [captions], title=title, side=side)
