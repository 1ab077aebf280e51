"""What a picture file becomes: upright, 8-bit RGB, as a viewer shows it; or one sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_images
from PIL import Image
from runs import run_main

from refocus_ext.errors import UsageError
from refocus_ext.images import decode as decoding
from refocus_ext.images.checks import check_images
from refocus_ext.images.crops import Crops
from refocus_ext.images.decode import UPRIGHT, BrokenImage, decode, load_resized, read_header
from refocus_ext.images.order import SampleKey
from refocus_ext.images.photographs import load_square
from refocus_ext.images.readers import FolderImages
from refocus_ext.images.sources.folder import ImageList, image_folder
from refocus_ext.tokens.identity import _decoding

BLUE, WHITE = [0, 0, 255], [255, 255, 255]


def encoded(picture: Image.Image, kind: str, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"", after: bytes = b""
) -> io.BytesIO:
    """A PNG of these bytes, with chunks before and after its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + extra + pixels + after + chunk(b"IEND", b""))


def pixels(file: io.BytesIO, **options: Any) -> list[Any]:
    """The first row of a picture."""
    picture = decode(file, **options)
    assert picture.mode == "RGB"
    return np.asarray(picture)[0].tolist()


def smooth(width: int, height: int) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


# ------------------------------------------------------------------------------------------------ ordinary pictures


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_ordinary_pictures_keep_their_bits(kind: str, mode: str) -> None:
    file = encoded(smooth(90, 70).convert(mode), kind)
    assert np.array_equal(np.asarray(decode(file)), np.asarray(Image.open(file).convert("RGB")))
    assert read_header(file).plain
    stored = Image.open(file).convert("RGB").resize((41, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(load_resized(file, 32)), np.asarray(stored))


# ------------------------------------------------------------------------------------------------ orientation


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_upright(kind: str, turn: int) -> None:
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = smooth(48, 64)
    seen = stored.transpose(UPRIGHT[turn]) if turn > 1 else stored
    file = encoded(stored, kind, exif=exif)
    header, picture = read_header(file), decode(file)
    assert header[:2] == picture.size == seen.size
    assert np.abs(np.asarray(picture, dtype=float) - np.asarray(seen)).mean() < 8
    assert header.plain == (turn == 1 or kind == "TIFF")  # Pillow has always turned TIFFs


def test_exif_after_the_pixels_of_a_png() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    block = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    rows = b"\0\1\2\3" * 2
    for file in (png(3, 2, 8, 0, rows, extra=block), png(3, 2, 8, 0, rows, after=block)):
        assert read_header(file)[:2] == decode(file).size == (2, 3)
    ordinary = png(3, 2, 8, 0, rows, after=chunk(b"tEXt", b"date:create\x002024"))
    assert read_header(ordinary) == (3, 2, True)


@pytest.mark.parametrize(
    "block", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM", b"Exif\0\0" + b"\xff" * 60, b"Exif\0\0"]
)
def test_broken_exif_counts_as_none(block: bytes) -> None:
    file = encoded(smooth(48, 64), "JPEG", exif=block)
    assert decode(file).size == read_header(file)[:2] == (48, 64)


def test_phone_pictures_are_upright_everywhere(tmp_path: Path) -> None:
    """In training, in an edit, in evaluation and in the check before: the left half as seen is black."""
    seen = Image.new("RGB", (64, 96))
    seen.paste((255, 255, 255), (32, 0, 64, 96))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "train" / "a").mkdir(parents=True)
    path = tmp_path / "train" / "a" / "phone.jpg"
    seen.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    images = image_folder(str(tmp_path), "train")
    crop = Crops(images, 64, scale=1.0, random=False)[0].image
    edited = load_square(str(path), 64)
    measured = next(FolderImages(tmp_path, None, 1).batches(1))[0] / 127.5 - 1
    assert measured.shape == (96, 64, 3)
    for left, right in ((crop[..., :28], crop[..., 36:]), (edited[..., :28], edited[..., 36:])):
        assert left.mean() < -0.9 and right.mean() > 0.9
    assert measured[:, :28].mean() < -0.9 and measured[:, 36:].mean() > 0.9


# ------------------------------------------------------------------------------------------------ pixels


def test_what_is_transparent_shows_the_background() -> None:
    clear_red, half_black = (255, 0, 0, 0), (0, 0, 0, 128)
    rgba = Image.new("RGBA", (2, 1))
    rgba.putdata([clear_red, half_black])
    assert pixels(encoded(rgba, "PNG")) == [WHITE, [127, 127, 127]]
    assert pixels(encoded(rgba, "PNG"), background=(0, 0, 255)) == [BLUE, [0, 0, 127]]
    grey = Image.new("LA", (2, 1))
    grey.putdata([(9, 0), (9, 255)])
    assert pixels(encoded(grey, "PNG")) == [WHITE, [9, 9, 9]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    assert pixels(encoded(palette, "PNG")) == [[255, 0, 0], BLUE]
    for kind in ("PNG", "GIF"):
        assert pixels(encoded(palette, kind, transparency=0)) == [WHITE, BLUE]
    assert pixels(encoded(palette, "PNG", transparency=bytes([128, 255]))) == [[255, 127, 127], BLUE]


def test_opaque_alpha_changes_nothing() -> None:
    picture = smooth(40, 30)
    opaque = picture.convert("RGBA")
    assert np.array_equal(np.asarray(decode(encoded(opaque, "PNG"))), np.asarray(picture))


def test_a_transparent_colour_of_a_png_in_every_depth() -> None:
    """tRNS tells the colour in the file's own depth."""
    deep = struct.pack(">3H", 0x1234, 0x2345, 0x3456)
    rgb16 = png(2, 1, 16, 2, b"\0" + deep + struct.pack(">3H", 65535, 0, 0), chunk(b"tRNS", deep))
    assert pixels(rgb16) == [WHITE, [255, 0, 0]]
    grey16 = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 0x1234, 0x8080), chunk(b"tRNS", b"\x12\x34"))
    assert pixels(grey16) == [WHITE, [128, 128, 128]]
    rgb8 = png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", chunk(b"tRNS", b"\0\1\0\2\0\3"))
    assert pixels(rgb8) == [WHITE, [4, 5, 6]]
    grey = {1: b"\0\x40", 2: b"\0\x1b", 4: b"\0\x01\x23", 8: b"\0\0\1\2\3"}
    seen = {1: [0, None, 0, 0], 2: [0, None, 170, 255], 4: [0, None, 34, 51], 8: [0, None, 2, 3]}
    for depth, rows in grey.items():
        shown = pixels(png(4, 1, depth, 0, rows, chunk(b"tRNS", b"\0\1")), background=(1, 99, 7))
        assert shown == [[1, 99, 7] if value is None else [value] * 3 for value in seen[depth]]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_sixteen_bits_are_scaled_not_clipped(mode: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=">u2" if mode == "I;16B" else "<u2")
    picture = Image.frombytes(mode, (4, 1), values.tobytes())
    assert np.asarray(decoding.to_rgb(picture))[0, :, 0].tolist() == [0, 1, 128, 255]
    if mode == "I;16":
        assert [p[0] for p in pixels(encoded(picture, "PNG"))] == [0, 1, 128, 255]
        assert [p[0] for p in pixels(encoded(picture, "TIFF"))] == [0, 1, 128, 255]


def test_a_tiff_whose_smallest_value_is_white() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype="<u2")
    data = bytearray(encoded(Image.frombytes("I;16", (4, 1), values.tobytes()), "TIFF").getvalue())
    photometric = data.index(struct.pack("<HHL", 262, 3, 1)) + 8
    data[photometric] = 0
    assert [p[0] for p in pixels(io.BytesIO(bytes(data)))] == [255, 254, 127, 0]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0, 64, 255], [0, 64, 255]),  # 8 bits in a wide type
        ([0, 257, 65535], [0, 1, 255]),  # 16 bits in a wide type
        ([-1000, 0, 1000], [0, 128, 255]),
        ([0, 10**6, 2 * 10**6], [0, 128, 255]),
        ([70000] * 3, [0] * 3),
    ],
)
def test_wide_integers(values: list[int], shown: list[int]) -> None:
    picture = Image.fromarray(np.array([values], dtype=np.int32))
    assert [p[0] for p in pixels(encoded(picture, "TIFF"))] == shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 50, 100], [0, 128, 255]),
        ([-1, 0, 1], [0, 128, 255]),
        ([float("nan"), 0, 1], [0, 0, 255]),
        ([float("inf"), 0, 100], [255, 0, 255]),
        ([float("nan")] * 3, [0] * 3),
    ],
)
def test_floats(values: list[float], shown: list[int]) -> None:
    picture = Image.fromarray(np.array([values], dtype=np.float32))
    assert [p[0] for p in pixels(encoded(picture, "TIFF"))] == shown


def test_a_pgm_is_scaled_by_its_own_maximum() -> None:
    assert [p[0] for p in pixels(io.BytesIO(b"P5 3 1 1000\n" + struct.pack(">3H", 0, 500, 1000)))] == [0, 128, 255]


MODES = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV I;16 I;16B I;16L I;16N I F".split()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow_ends_as_rgb(mode: str) -> None:
    picture = Image.new(mode, (5, 4))
    shown = decoding.to_rgb(picture)
    assert shown.mode == "RGB" and shown.size == (5, 4)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "P"])
def test_colours_of_files_in_other_modes(mode: str) -> None:
    picture = Image.new("RGB", (16, 16), (200, 200, 200)).convert(mode)
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    shown = np.asarray(decode(encoded(picture, kind)))
    assert np.abs(shown.astype(int) - 200).mean() < (130 if mode == "1" else 8)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 1), colour) for colour in ("blue", "red")]
    for kind in ("GIF", "PNG", "WEBP"):
        file = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert np.abs(np.array(pixels(file)[0]) - BLUE).max() <= 2


# ------------------------------------------------------------------------------------------------ files to refuse


def header_of_png(width: int, height: int) -> io.BytesIO:
    return png(width, height, 8, 2, b"\0" * 100)


def test_too_many_pixels_are_refused_by_the_header() -> None:
    for width, height in ((30000, 30000), (10**6, 10**6), (9500, 9500)):
        for reads in (read_header, decode):
            with pytest.raises(BrokenImage, match=r"(more than the 89 megapixels|more pixels than can be decoded)"):
                reads(header_of_png(width, height))


def test_huge_jpegs_are_decoded_at_the_size_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(smooth(400, 300), "JPEG", quality=95)
    whole = load_resized(file, 40)
    monkeypatch.setattr(decoding, "DRAFT_ABOVE", 400 * 300 - 1)
    assert decode(file).size == (400, 300)  # all pixels, where no smaller size is known
    assert decode(file, shorter=40).size == (200, 150)  # a half; a quarter would be less than twice 40
    assert np.abs(np.asarray(load_resized(file, 40), dtype=float) - np.asarray(whole)).mean() < 3
    assert not read_header(file).plain
    monkeypatch.setattr(decoding, "MOST_PIXELS", 400 * 300 - 1)
    assert load_resized(file, 40).size == whole.size
    with pytest.raises(BrokenImage, match="has 400x300 pixels, more than"):
        decode(file)
    with pytest.raises(BrokenImage, match="has 400x300 pixels, more than"):  # all coefficients would be in memory
        decode(encoded(smooth(400, 300), "JPEG", progressive=True), shorter=40)


def test_a_jpeg_above_pillows_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("JPEG", "MPO"):
        assert load_resized(encoded(smooth(40, 30), kind), 12).size == (16, 12)
    with pytest.raises(BrokenImage, match="more pixels than can be decoded"):
        decode(encoded(smooth(40, 30), "PNG"))


def test_strips_are_cut_before_they_are_enlarged() -> None:
    strip = load_resized(encoded(smooth(10, 1000), "PNG"), 64)
    assert strip.size == (64, 64 * 20)
    panorama = load_resized(encoded(smooth(200, 10), "PNG"), 64)
    assert panorama.size == (1280, 64)  # as ever up to 20 to 1
    for reads in (load_resized, read_header):
        with pytest.raises(BrokenImage, match="is 10x100000 pixels, more than 200 times longer than wide"):
            reads(encoded(Image.new("L", (10, 100000)), "PNG"), 64)
    assert read_header(encoded(smooth(10, 1000), "PNG")).plain is False


def bomb(kind: bytes) -> io.BytesIO:
    """A text chunk of a few kilobytes that unpacks to 70 MB."""
    packed = zlib.compress(b"\0" * 70_000_000, 9)
    data = {b"zTXt": b"a\0\0" + packed, b"iTXt": b"a\0\1\0\0\0" + packed, b"iCCP": b"a\0\0" + packed}[kind]
    return png(8, 8, 8, 0, b"\0" * 72, chunk(kind, data))


def odd_files() -> dict[str, io.BytesIO]:
    whole = encoded(smooth(64, 64), "JPEG").getvalue()
    files = {
        "empty": b"",
        "text": b"no image",
        "truncated JPEG": whole[: len(whole) // 2],
        "truncated PNG": encoded(smooth(64, 64), "PNG").getvalue()[:500],
        "truncated header": whole[:30],
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        "zTXt bomb": bomb(b"zTXt").getvalue(),
        "iTXt bomb": bomb(b"iTXt").getvalue(),
        "no pixels": png(0, 0, 8, 2, b"").getvalue(),
        "odd depth": png(4, 4, 7, 2, b"\0" * 99).getvalue(),
        "TIFF of loops": b"II*\0\x08\0\0\0\x01\0\0\1\4\0\xff\xff\xff\xff\0\0\0\0\x08\0\0\0",
    }
    return {name: io.BytesIO(data) for name, data in files.items()}


@pytest.mark.parametrize("name", odd_files())
def test_odd_files_are_one_kind_of_error(name: str) -> None:
    with pytest.raises(BrokenImage) as raised:
        decode(odd_files()[name])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 250


@pytest.mark.parametrize(
    "error", [struct.error("x"), OverflowError(), MemoryError(), RecursionError("deep"), KeyError(5), SyntaxError("x")]
)
def test_whatever_pillow_raises_is_one_sentence(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "train" / "a", 2)
    images = image_folder(str(tmp_path), "train")

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(decoding, "_open", fails)
    with pytest.raises(
        UsageError, match=r"a/000\.jpg (cannot be decoded|takes more memory).*; remove it or replace it"
    ):
        check_images(images, 64, "upsample")


def test_a_bad_file_is_named_before_the_start_and_replaced_while_training(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "a", 3)
    (tmp_path / "train" / "a" / "001.png").write_bytes(header_of_png(30000, 30000).getvalue())
    images = image_folder(str(tmp_path), "train")
    assert Crops(images, 32)[SampleKey(0, images.paths.index(str(tmp_path / "train" / "a" / "001.png")))].broken == 2
    with pytest.raises(UsageError, match=r"a/001\.png has .*; remove it or replace it"):
        check_images(images, 64, "upsample")


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    gone = ImageList((str(tmp_path / "000.jpg"), str(tmp_path / "gone.jpg")), (0, 0), ("a",))
    with pytest.raises(UsageError, match=r"gone\.jpg cannot be read \(No such file"):
        check_images(gone, 64, "upsample")


def test_edit_names_a_bad_picture(tmp_path: Path) -> None:
    (tmp_path / "strip.png").write_bytes(encoded(Image.new("L", (1, 5000)), "PNG").getvalue())
    with pytest.raises(UsageError, match=r"strip\.png is 1x5000 pixels, more than 200 times longer than wide"):
        load_square(str(tmp_path / "strip.png"), 32)


# ------------------------------------------------------------------------------------------------ caches


def test_only_caches_of_extraordinary_pictures_change(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "a", 3)
    assert _decoding(image_folder(str(tmp_path), "train")) == {}
    Image.new("RGBA", (80, 80), (0, 0, 0, 0)).save(tmp_path / "train" / "a" / "clear.png")
    assert _decoding(image_folder(str(tmp_path), "train")) == {"decoded": "as viewed"}


def test_a_command_ends_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "train" / "a", 2)
    write_images(tmp_path / "val" / "a", 2)
    (tmp_path / "val" / "a" / "bomb.png").write_bytes(header_of_png(60000, 60000).getvalue())
    assert (
        run_main(
            "tokenizer", "--data", str(tmp_path), "--preset", "demo", "--batch-size", "2", "--out", str(tmp_path / "o")
        )
        == 2
    )
    told = capsys.readouterr().err
    assert "bomb.png has" in told and "Traceback" not in told
