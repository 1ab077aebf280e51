"""The command `sample`: its pictures, sets that continue and do not depend on the number of processes, and edits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_vae, write_images
from PIL import Image
from students import lively_var, write_run
from torch import Tensor

from patches import load_upstream
from patches.sampling import Guidance
from refocus_ext.commands import main
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.export.folder import Export
from refocus_ext.images.npz import read_made_by, write_npz
from refocus_ext.images.photographs import load_square
from refocus_ext.images.picture import image_bytes
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.sampling import jobs, sample_set
from refocus_ext.sampling.editing import Box, edit, kept_region, parse_box
from refocus_ext.sampling.options import SampleOptions
from refocus_ext.sampling.pictures import shorten
from refocus_ext.sampling.sampler import FOR_FID, sample_images
from refocus_ext.sampling.student import Student, load_student
from refocus_ext.sampling.student_files import Files
from refocus_ext.storage.atomic import sha256
from refocus_ext.storage.upstream_weights import var_geometry

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds runs/distill-d2."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "distill-d2")
    return tmp_path


@pytest.fixture
def student(here: Path) -> Student:
    return load_student(here / "runs" / "distill-d2")


def arrays(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as file:
        assert sorted(file.files) == ["arr_0", "arr_1"]
        return file["arr_0"], file["arr_1"]


def cut_out(picture: str, column: int, row: int = 0, *, left: int = 6, top: int = 50, side: int = 128) -> np.ndarray:
    """One image of a grid, back at 64 pixels."""
    x, y = left + column * (side + 6), top + row * (side + 22)
    return np.asarray(Image.open(picture).convert("RGB").crop((x, y, x + side, y + side)))[::2, ::2]


# ------------------------------------------------------------------------------------------------ pictures


def test_a_grid_without_options(here: Path, capsys: pytest.CaptureFixture[str], student: Student) -> None:
    assert main(["sample"]) == 0
    out = capsys.readouterr().out
    assert "upstream: " in out and "student: runs/distill-d2/var_d2.pth" in out
    assert "lowered" not in out, "it is the default"
    assert main(["sample", "--count", "1", "--top-k", "80", "--out", "one.png"]) == 0
    assert "--top-k 80 is lowered to 64, the number of codes" in capsys.readouterr().out
    images = image_bytes(sample_images(student, [0, 0, 0, 1, 1, 1, 2, 2]))  # the named classes, evenly
    assert all(np.array_equal(cut_out("samples.png", i), images[i]) for i in range(8))


def test_a_demos_pictures_have_less_guidance(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Students that are compared are drawn alike, as the first one is by itself."""
    demo, other = str(write_run(tmp_path / "demo", preset="demo")), "runs/distill-d2"
    used: list[float] = []

    def drawn(student: Student, options: SampleOptions, labels: list[int], guidance: Guidance) -> Tensor:
        used.append(guidance.cfg)
        return torch.zeros(len(labels), 3, 64, 64)

    monkeypatch.setattr(jobs, "draw_images", drawn)
    for words, expected in (
        (["--student", demo], [1.5]),
        (["--student", demo, "--cfg", "4"], [4.0]),
        (["--student", other], [4.0]),
        (["--compare", demo, other], [1.5, 1.5]),
        (["--compare", other, demo], [4.0, 4.0]),
    ):
        used.clear()
        assert main(["sample", *words, "--count", "1"]) == 0 and used == expected


def options(**values: Any) -> SampleOptions:
    return SampleOptions(**values)


def test_classes_share_the_count(student: Student) -> None:
    def labels(**values: Any) -> list[int]:
        return jobs.picture_labels(student, options(**values), 8)

    assert labels(classes="toaster,4", count=4) == [2, 2, 4, 4]
    assert labels(classes="toaster,4,0", count=4) == [2, 2, 4, 0]
    assert labels(classes="none") == [5] * 8
    assert labels(count=2) == [0, 1] and labels() == [0, 0, 0, 1, 1, 1, 2, 2]
    with pytest.raises(UsageError, match="--count 1 is less than the 2 classes"):
        labels(classes="0,1", count=1)


def test_the_identity_of_a_set_is_that_of_sets_begun_before(student: Student) -> None:
    """Key by key what earlier versions put into sample.json, of the options that decide the bits and no other."""
    chosen = options(
        classes="toaster,0", count=5, seed=4, cfg=2.0, top_k=20, smooth=True, batch_size=3, compile=True, stock=True,
        npz="a.npz", student="runs/distill-d2", device="cpu",
    )  # fmt: skip
    weights = {path.name: sha256(path) for path in (student.files.var, student.files.vae)}
    before = {
        "weights": weights,
        "images": 5,
        "classes": [2, 0],
        "seed": 4,
        "cfg": 2.0,
        "top_k": 20,
        "top_p": 0.96,
        "smooth": True,
        "batch_size": 3,
        "precision": "fp32",
        "compile": True,
    }
    assert json.dumps(jobs.set_plan(student, chosen).identity) == json.dumps(before)


def test_a_student_of_a_part_of_its_classes_draws_those(tmp_path: Path) -> None:
    """As after `distill --class-numbers`: its run records which; --classes still takes any."""
    run = write_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"trained_classes": [1, 2]}))
    student = load_student(run)
    assert student.trained_classes == [1, 2]
    assert jobs.picture_labels(student, options(), 4) == [1, 1, 2, 2]
    assert jobs.set_plan(student, options(npz="a.npz", per_class=2)).labels == [1, 2, 1, 2]
    assert jobs.picture_labels(student, options(classes="0"), 2) == [0, 0]
    assert Export.of(student).geometry["trained_classes"] == [1, 2]


def test_two_students_keep_as_many_codes_as_each_has(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever comes first; and both have the first one's cfg, which is lower for a demo."""
    upstream = load_upstream()
    larger = small_vae(upstream, vocab_size=128).requires_grad_(False).eval()
    write_run(here / "larger", var=lively_var(upstream, vae=larger), preset="demo")
    drawn: list[tuple[int, float]] = []

    def draw(student: Student, options: SampleOptions, labels: list[int], guidance: Guidance) -> Tensor:
        drawn.append((guidance.top_k, guidance.cfg))
        return torch.zeros(len(labels), 3, 64, 64)

    monkeypatch.setattr(jobs, "draw_images", draw)
    assert main(["sample", "--compare", "runs/distill-d2", "larger"]) == 0
    assert main(["sample", "--compare", "larger", "runs/distill-d2"]) == 0
    assert drawn == [(64, 4.0), (128, 4.0), (128, 1.5), (64, 1.5)]


def test_rng_batch_draws_upstreams_batch(here: Path, student: Student) -> None:
    words = ["--classes", "0,1", "--count", "3", "--seed", "4", "--cfg", "2", "--top-k", "20", "--top-p", "0.9"]
    for stock in ([], ["--stock"]):
        assert main(["sample", "--rng", "batch", "--out", "batch.png", *words, *stock]) == 0
        upstreams = student.var.autoregressive_infer_cfg(
            B=3, label_B=torch.tensor([0, 0, 1]), g_seed=4, cfg=2.0, top_k=20, top_p=0.9
        )
        expected = image_bytes(upstreams)
        assert all(np.array_equal(cut_out("batch.png", i), expected[i]) for i in range(3))
    assert main(["sample", "--out", "image.png", *words]) == 0
    assert not np.array_equal(cut_out("image.png", 0), expected[0])


def test_strip_and_comparison(here: Path, student: Student) -> None:
    assert main(["sample", "--steps-strip", "strip.png", "--classes", "0,1", "--count", "2"]) == 0
    final = image_bytes(sample_images(student, [0, 1]))
    with Image.open("strip.png") as strip:
        left, top = strip.width - 128 - 6, strip.height - 128 - 6
        assert np.array_equal(np.asarray(strip.crop((left, top, left + 128, top + 128)))[::2, ::2], final[1])
    other = write_run(here / "other", seed=5)
    assert main(["sample", "--compare", "runs/distill-d2", str(other), "--count", "2", "--classes", "0,1"]) == 0
    assert Path("compare.png").is_file()
    bigger = write_run(here / "bigger", var=lively_var(load_upstream(), num_classes=7))
    assert main(["sample", "--compare", "runs/distill-d2", str(bigger)]) == 2


def test_image_bytes_rounds_and_clamps() -> None:
    values = torch.tensor([-0.1, 0.0, 0.49 / 255, 0.51 / 255, 1 / 255, 254.6 / 255, 1.0, 1.7])
    image = values.view(1, 1, 1, 8).expand(1, 3, 1, 8)
    assert image_bytes(image)[0, 0, :, 0].tolist() == [0, 0, 0, 1, 1, 255, 255, 255]
    every = torch.arange(256).div(255).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert np.array_equal(image_bytes(every)[0, :, :, 1], np.arange(256, dtype=np.uint8).reshape(16, 16))


def test_long_captions_are_cut() -> None:
    assert shorten("tench", 128) == "tench"
    assert shorten("German short-haired pointer", 100).endswith("...")


def test_bf16_is_another_arithmetic(here: Path, student: Student) -> None:
    words = ["sample", "--classes", "0", "--count", "2", "--top-k", "1"]
    assert main([*words, "--precision", "bf16", "--out", "half.png"]) == 0
    assert main([*words, "--out", "full.png"]) == 0
    difference = np.abs(cut_out("half.png", 0).astype(int) - cut_out("full.png", 0).astype(int))
    assert difference.mean() > 0  # its own arithmetic; whether tokens agree is up to the weights
    with jobs.precision(student, options(precision="bf16")):
        assert sample_images(student, [0]).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_images_are_nearly_the_same(here: Path) -> None:
    words = ["sample", "--classes", "0", "--count", "2", "--top-k", "1"]
    assert main([*words, "--compile", "--out", "compiled.png"]) == 0 and main([*words, "--out", "plain.png"]) == 0
    difference = np.abs(cut_out("compiled.png", 0).astype(int) - cut_out("plain.png", 0).astype(int))
    assert difference.max() <= 2


# ------------------------------------------------------------------------------------------------ sets

SET = ("--per-class", "3", "--batch-size", "4", "--seed", "7")


def test_npz_holds_the_images_shuffled(here: Path, student: Student) -> None:
    assert main(["sample", "--npz", "set.npz", *SET]) == 0
    images, labels = arrays("set.npz")
    assert images.shape == (9, 64, 64, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    assert sorted(labels) == [0, 0, 0, 1, 1, 1, 2, 2, 2] and list(labels) != [0, 1, 2] * 3
    assert not Path("set.npz.parts").exists()
    expected = [
        image_bytes(sample_images(student, ([0, 1, 2] * 3)[first : first + 4], seed=7, first=first, guidance=FOR_FID))
        for first in (0, 4, 8)
    ]
    drawn = {(image.tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)}
    assert drawn == {(image.tobytes(), i % 3) for i, image in enumerate(np.concatenate(expected))}
    with zipfile.ZipFile("set.npz") as archive:  # what evaluators that read the archive themselves expect
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def test_png_files_hold_the_same_images(here: Path) -> None:
    assert main(["sample", "--npz", "set.npz", *SET]) == 0 and main(["sample", "--folder", "set", *SET]) == 0
    files = sorted(Path("set").glob("*.png"))
    assert [file.name for file in files][:4] == [f"{i:06d}-class{i % 3}.png" for i in range(4)]
    pngs = {np.asarray(Image.open(file)).tobytes() for file in files}
    assert pngs == {image.tobytes() for image in arrays("set.npz")[0]}


def interrupting(number: int, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sends this process a signal while the batch `after` is drawn."""
    draw, calls = jobs.sample_images, list[int]()

    def once(*words: Any, **named: Any) -> Tensor:
        calls.append(1)
        if len(calls) == after:
            os.kill(os.getpid(), number)
        return draw(*words, **named)

    monkeypatch.setattr(jobs, "sample_images", once)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_set_continues(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    assert main(["sample", "--npz", "whole.npz", *SET]) == 0
    with monkeypatch.context() as patch:
        interrupting(number, 1, patch)
        assert main(["sample", "--npz", "set.npz", *SET]) == code
    assert "2 batches are missing; rerun the same command to resume" in capsys.readouterr().out
    assert not Path("set.npz").exists() and len(list(Path("set.npz.parts").glob("part-*.npy"))) == 1
    kept = Path("set.npz.parts/part-000000.npy").stat().st_mtime_ns
    # other options would mix two sets
    assert main(["sample", "--npz", "set.npz", *SET, "--cfg", "3"]) == 2
    assert "was started with cfg = 1.5, not 3.0" in capsys.readouterr().err
    seen: list[int] = []
    keep = sample_set.NpyParts.keep

    def noted(self: Any, batch: int, images: np.ndarray) -> None:
        seen.append(batch)
        keep(self, batch, images)

    monkeypatch.setattr(sample_set.NpyParts, "keep", noted)
    assert Path("set.npz.parts/part-000000.npy").stat().st_mtime_ns == kept
    assert main(["sample", "--npz", "set.npz", *SET]) == 0
    assert seen == [1, 2] and "resuming: 1 of 3 batches are done" in capsys.readouterr().out
    assert all(np.array_equal(a, b) for a, b in zip(arrays("set.npz"), arrays("whole.npz"), strict=True))


def test_a_finished_set_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--npz", "set.npz", *SET]) == 0
    before = Path("set.npz").read_bytes()
    assert main(["sample", "--npz", "set.npz", *SET]) == 0
    assert "already exists" in capsys.readouterr().out
    assert main(["--preflight", "2", "sample", "--npz", "set.npz", *SET]) == 0
    assert capsys.readouterr() == ("", "")
    for preflight in ([], ["--preflight", "2"]):
        assert main([*preflight, "sample", "--npz", "set.npz", *SET, "--seed", "8"]) == 2
        assert "was started with seed = 7, not 8" in capsys.readouterr().err
    assert Path("set.npz").read_bytes() == before
    parts = Path("set.npz.parts")
    for seed, left in (("7", False), ("8", True)):  # of this set, by a command killed when it was joined; of another
        parts.mkdir(exist_ok=True)
        identity = read_made_by(Path("set.npz")) or {}
        (parts / "sample.json").write_text(json.dumps(identity | {"seed": int(seed)}))
        assert main(["sample", "--npz", "set.npz", *SET]) == 0 and parts.exists() == left
    np.savez("other.npz", arr_0=np.zeros(1))
    assert main(["sample", "--npz", "other.npz", *SET]) == 2
    assert "was not drawn by this command" in capsys.readouterr().err
    write_images(here / "photographs", 1)
    assert main(["sample", "--folder", "photographs", *SET]) == 2
    assert "holds files but no set of images" in capsys.readouterr().err


def test_a_set_of_many_classes_is_known_again(tmp_path: Path) -> None:
    """ImageNet-21k's class names do not fit into an archive's comment."""
    made_by = {"classes": [f"n{number:08d}" for number in range(21_841)]}
    images = np.zeros((2, 8, 8, 3), np.uint8)
    write_npz(tmp_path / "a.npz", images, images.shape, np.arange(2), made_by)
    assert read_made_by(tmp_path / "a.npz") == made_by
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], images) and np.array_equal(arrays["arr_1"], np.arange(2))


def test_a_full_disk_leaves_whole_parts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = np.save

    def fail(file: Any, array: np.ndarray) -> None:
        if "000001" in file.name:
            file.write(b"torn")
            raise OSError(28, "No space left on device")
        save(file, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fail)
        assert main(["sample", "--npz", "set.npz", *SET]) == 1
    assert [path.name for path in Path("set.npz.parts").glob("*.npy")] == ["part-000000.npy"]
    assert main(["sample", "--npz", "set.npz", *SET]) == 0 and len(arrays("set.npz")[0]) == 9


def test_two_processes_draw_the_same_set(here: Path) -> None:
    assert main(["sample", "--npz", "one.npz", *SET]) == 0
    environment = os.environ | {"REFOCUS_PYTHON": sys.executable, "NPROC": "2", "OMP_NUM_THREADS": "1"}
    words = ["sample", "--npz", "two.npz", "--device", "cpu", *SET]
    result = subprocess.run(
        ["bash", str(ROOT / "run.sh"), *words], capture_output=True, text=True, env=environment, cwd=here
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("upstream: ") == 1
    assert all(np.array_equal(a, b) for a, b in zip(arrays("one.npz"), arrays("two.npz"), strict=True))


def test_missing_parts_are_not_joined(here: Path, student: Student) -> None:
    plan = jobs.set_plan(student, options(per_class=3, batch_size=4))
    parts = sample_set.NpyParts(here / "parts", plan)
    parts.open()
    with pytest.raises(RunFailed, match="lacks 3 of 3 parts"):
        parts.join(here / "set.npz")


# ------------------------------------------------------------------------------------------------ editing


def test_boxes() -> None:
    assert parse_box("0.25,0.5,0.75,1", 64) == (Box(1, 2, 3, 4), "fractions")
    assert parse_box("16,0,64,33", 64) == (Box(1, 0, 4, 2), "pixels")
    inside = kept_region(Box(1, 2, 3, 4), 4, outside=True)
    assert inside.int().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]
    assert torch.equal(kept_region(Box(1, 2, 3, 4), 4, outside=False), ~inside)
    for text, message in (
        ("1,2,3", "is not a box; give four numbers"),
        ("0.5,0,0.2,1", "read as fractions, is not a box inside the image"),
        ("0,0,80,64", "read as pixels, is not a box inside the image"),
        ("0,0,7,64", "narrower than a latent cell of 16 pixels"),
    ):
        with pytest.raises(UsageError) as error:
            parse_box(text, 64)
        assert message in str(error.value)
    with pytest.raises(UsageError, match="leaves nothing to keep"):
        kept_region(Box(0, 0, 4, 4), 4, outside=False)


class LocalDecoder(torch.nn.Module):
    """Each latent cell is its own 16 x 16 pixels: what an untrained decoder, whose norms mix all cells, cannot show."""

    def forward(self, f_hat_BChw: Tensor) -> Tensor:
        return 0.2 * f_hat_BChw[:, :3].repeat_interleave(16, 2).repeat_interleave(16, 3)


@pytest.mark.parametrize("outside", [False, True])
def test_the_kept_part_is_the_reconstruction(tmp_path: Path, outside: bool) -> None:
    upstream = load_upstream()
    vae = small_vae(upstream, patch_nums=(1, 2, 4, 8)).requires_grad_(False).eval()
    vae.decoder = LocalDecoder()
    torch.nn.init.dirac_(vae.post_quant_conv.weight)
    var = lively_var(upstream, vae=vae)
    pyramid = FocusPyramid(image_size=128, states=3, rho_max=6.0)
    files = Files(tmp_path, tmp_path, tmp_path)
    student = Student(var, vae, var_geometry(var.state_dict()), (), pyramid, files)
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = edit(student, x, kept_region(Box(4, 0, 8, 8), 8, outside), [0, 1], seed=1)
    changed_HW = (result.edited_B3HW - result.reconstruction_3HW).square().mean((0, 1))
    assert min(result.kept_psnr()) > 30  # dB
    assert -10 * changed_HW[~result.kept_HW].mean().log10() < 20
    # what is left of a change fades with the distance from the box
    kept_columns = changed_HW.mean(0)[result.kept_HW[0]].view(4, 16).mean(1).tolist()
    towards_the_box = kept_columns[::-1] if outside else kept_columns
    assert towards_the_box[0] < towards_the_box[3] / 10


def test_edit_writes_pictures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(here / "images", 1)
    words = ["sample", "--edit", "images/000.jpg", "--mask", "0.5,0,1,1", "--classes", "toaster", "--folder", "edits"]
    assert main(words) == 0
    assert "--mask in fractions: repaints pixels 32..64 across, 0..64 down of 64" in capsys.readouterr().out
    assert Image.open("edit.png").width > 5 * 128 and len(list(Path("edits").glob("*.png"))) == 2
    assert Image.open("edits/edit-000.png").size == (64, 64)
    assert main([*words, "--outside"]) == 0
    assert "keeps pixels" in capsys.readouterr().out
    assert main([*words, "--precision", "bf16"]) == 0  # encodes in fp32
    (here / "broken.jpg").write_text("no image")
    with pytest.raises(UsageError, match=r"broken\.jpg is not an image that can be opened"):
        load_square(str(here / "broken.jpg"), 64)


# ------------------------------------------------------------------------------------------------ usage


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--npz", "a.npz", "--steps-strip", "b.png"], "--npz and --steps-strip are two jobs"),
        (["--edit", "a.png"], "--edit needs --mask"),
        (["--mask", "0,0,1,1"], "need --edit IMAGE."),
        (["--per-class", "3"], "--per-class needs --npz or --folder"),
        (["--npz", "a.npz", "--out", "b.png"], "--out is for pictures"),
        (["--npz", "a.npz", "--rng", "batch"], "--rng batch draws one batch"),
        (["--rng", "batch", "--seed", str(2**64)], "--seed 18446744073709551616 is too large for --rng batch"),
        (["--compare", "a", "b", "--student", "c"], "omit --student"),
        (["--classes", "tosater"], "did you mean toaster?"),
        (["--top-p", "1.5"], "1.5 is not between 0 and 1"),
        (["--compare", "a"], "--compare needs 2 values"),
        (["--student", "nothing"], "--student: nothing does not exist"),
    ],
)
def test_bad_input(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    try:
        code: Any = main(["sample", *words])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error
    assert sorted(path.name for path in here.iterdir()) == ["runs"]


def test_the_newest_run_is_taken_and_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = write_run(here / "runs" / "distill-other", seed=3)
    os.utime(here / "runs" / "distill-d2" / "config.json", (1, 1))
    assert main(["sample", "--count", "1"]) == 0
    assert f"--student {newer.relative_to(here)}, the newest of 2 runs" in capsys.readouterr().out


def test_an_interrupted_run_is_taken_last_and_said_to_be_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = write_run(here / "runs" / "distill-other", seed=3)
    config = json.loads((newer / "config.json").read_text())
    (newer / "config.json").write_text(json.dumps(config | {"options": {**config.get("options", {}), "steps": 300}}))
    os.utime(here / "runs" / "distill-d2" / "config.json", (1, 1))
    (newer / "checkpoints").mkdir()
    (newer / "checkpoints" / "step-00000025-0123456789abcdef.pt").touch()
    assert main(["sample", "--count", "1"]) == 0
    out = capsys.readouterr().out
    assert "--student runs/distill-d2, the newest finished one of 2 runs" in out and "not finished" not in out
    assert main(["sample", "--count", "1", "--student", str(newer)]) == 0
    assert "its training is not finished: these are its weights after 25 of 300 steps" in capsys.readouterr().out


def test_without_a_run_it_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample"]) == 2
    assert "train a student with `bash run.sh distill`, or give --student RUN" in capsys.readouterr().err


# Ten lines for README.md.
SNIPPET = """
from PIL import Image

from refocus_ext.images.picture import image_bytes
from refocus_ext.sampling.sampler import Guidance, sample_images
from refocus_ext.sampling.student import load_student

student = load_student("runs/distill-d20", device="cpu")  # or a folder with var_d16.pth and vae_ch160v4096z32.pth
labels = student.labels("golden retriever,2")
images = sample_images(student, labels, seed=0, guidance=Guidance(cfg=1.5))  # (2,3,H,W) in [0,1]
Image.fromarray(image_bytes(images)[0]).save("retriever.png")
"""


def test_the_readmes_ten_lines(here: Path, student: Student) -> None:
    (here / "runs" / "distill-d2").rename(here / "runs" / "distill-d20")
    run: Callable[..., None] = exec
    run(SNIPPET, {})
    expected = image_bytes(sample_images(student, [1, 2], seed=0, guidance=Guidance(cfg=1.5)))[0]
    assert np.array_equal(np.asarray(Image.open("retriever.png")), expected)
