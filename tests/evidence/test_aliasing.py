"""The alias benchmark: filters against PyTorch and brute force, the table of docs/measured.md, toy shifts, spectra."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_vae, write_images
from PIL import Image
from runs import TINY, run_main
from torch import Tensor
from torch.nn import functional as F

from patches import load_upstream
from refocus_ext.errors import UsageError
from refocus_ext.evidence.aliasing import shifts
from refocus_ext.evidence.aliasing.filters import SetReport, decimated_states, measure
from refocus_ext.evidence.aliasing.report import energy_table, gaussian_in_words, in_words
from refocus_ext.evidence.aliasing.sample_spectrum import compare, open_images
from refocus_ext.evidence.aliasing.shifts import (
    MARGIN,
    Prefixes,
    ShiftReading,
    Subject,
    measure_shifts,
    moved,
    open_subject,
)
from refocus_ext.optics.charts import chart
from refocus_ext.optics.prefilter import Prefilter, flaws, prefilters
from refocus_ext.optics.psf import disk_otf
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.optics.spectrum import dB, energy, fold

STATES = decimated_states(FocusPyramid())
SMALL = ("--image-size", "64", "--focus-states", "3", "--rho-max", "6")


def named(filters: list[Prefilter], name: str) -> Prefilter:
    return next(filter for filter in filters if filter.name == name)


# ------------------------------------------------------------------------------------------------ filters


def filtered(x: Tensor, filter: Prefilter) -> Tensor:
    otf, phase = filter.on_grid(*x.shape[-2:])
    return torch.fft.ifft2(fold(torch.fft.fft2(x) * otf * phase, filter.s)).real


@pytest.mark.parametrize("s", [2, 4])
def test_filters_are_what_pytorch_and_the_pyramid_do(s: int) -> None:
    x = torch.randn(1, 1, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    filters, size = prefilters(s, 3.0), 128 // s
    pyramid = FocusPyramid(image_size=128, states=2, rho_max=3.0)
    expected = {
        "none": x[..., ::s, ::s],
        "box": F.avg_pool2d(x, s),
        "bicubic": F.interpolate(x, size=(size, size), mode="bicubic"),
        "bicubic, antialias": F.interpolate(x, size=(size, size), mode="bicubic", antialias=True),
    }
    if s == 2:
        expected["disk"] = pyramid.low(x, 0)
    inner = (
        ...,
        slice(8, size - 8),
        slice(8, size - 8),
    )  # the borders differ: periodic here, clamped or reflected there
    for name, view in expected.items():
        assert torch.allclose(filtered(x, named(filters, name))[inner], view[inner], atol=1e-6), name


@pytest.mark.parametrize("state", STATES, ids=lambda state: f"s{state.s}")
@pytest.mark.parametrize("name", ["disk", "box", "bicubic, antialias", "gaussian"])
def test_the_worst_sinusoid_is_the_worst_of_a_brute_force_scan(state: Any, name: str) -> None:
    filter, s = named(state.filters, name), state.s
    found = flaws(filter)
    taps, T = filter.taps_TT.numpy(), filter.taps_TT.shape[0]
    t = np.arange(T) - (T - 1) / 2
    f = np.linspace(0, 0.5, 241)
    gains = np.abs(
        [[(taps * np.exp(2j * np.pi * (fy * t[:, None] + fx * t[None, :]))).sum() for fx in f] for fy in f[::4]]
    )
    outside = np.maximum(f[::4, None], f[None, :]) >= 0.5 / s
    brute = (gains * outside).max()
    assert 20 * math.log10(found.worst_gain / brute) == pytest.approx(0, abs=0.1)
    assert max(found.worst_at) >= 0.5 / s
    assert found.inner_gain <= found.worst_gain
    assert all(abs(v - round(v * s) / s) < 0.25 / s for v in found.inner_at) and max(found.inner_at) >= 0.5 / s


def test_the_worst_sinusoid_really_comes_through_that_strong() -> None:
    state = STATES[0]
    filter = named(state.filters, "disk")
    fy, fx = flaws(filter).worst_at
    t = torch.arange(400, dtype=torch.float64)
    phase = 2 * math.pi * (fy * t[:, None] + fx * t[None, :])
    waves = torch.stack([phase.cos(), phase.sin()])[:, None]
    through = F.conv2d(waves, filter.taps_TT[None, None])[..., ::8, ::8]
    amplitude = through.square().sum(0).sqrt()  # of the cosine and the sine that fold together
    assert torch.allclose(amplitude, torch.full_like(amplitude, flaws(filter).worst_gain), atol=1e-9)


def test_contrast_inversion_of_the_disk_and_of_nobody_better() -> None:
    for state in STATES:
        disk, gaussian, sinc, box = (flaws(named(state.filters, n)) for n in ("disk", "gaussian", "sinc", "box"))
        assert disk.first_zero == pytest.approx(0.61 / state.radius, rel=0.02)
        assert disk.inverted_in_band < -0.1  # inside the passband at every state of the paper
        lowest = float(disk_otf(state.radius, torch.linspace(0, 0.5, 2000)).min())
        assert disk.inverted_anywhere == pytest.approx(lowest, abs=0.015)
        assert gaussian.first_zero is None and gaussian.inverted_anywhere == sinc.inverted_anywhere == 0
        assert box.first_zero == (pytest.approx(1 / state.s, abs=1e-3) if state.s > 2 else None)


# ------------------------------------------------------------------------------------------------ (a) optics


@pytest.fixture(scope="module")
def zone_plate() -> SetReport:
    return measure(STATES, chart("zone-plate", 256, torch.float64), 256, periodic=True).report("zone-plate")


def test_the_table_of_the_design(zone_plate: SetReport) -> None:
    # docs/measured.md: alias | passband, dB.
    table = {
        "disk": ((-35.8, -12.6), (-36.9, -13.5), (-27.3, -9.2)),
        "gaussian": ((-53.8, -10.7), (-81.2, -12.8), (-40.0, -8.5)),
        "box": ((-21.8, -2.1), (-15.8, -2.1), (-9.6, -1.7)),
    }
    for name, rows in table.items():
        for k, (alias, passband) in enumerate(rows, start=1):
            reading = zone_plate.at(k, name)
            assert reading.alias_dB == pytest.approx(alias, abs=0.5), (name, k)
            assert reading.passband_dB == pytest.approx(passband, abs=0.5), (name, k)


def test_the_disk_is_14_dB_below_the_box_and_the_gaussian_below_both(zone_plate: SetReport) -> None:
    for k in (1, 2, 3):
        disk, box, gaussian = (zone_plate.at(k, name) for name in ("disk", "box", "gaussian"))
        assert box.alias_any_phase_dB - disk.alias_any_phase_dB >= 14
        assert gaussian.alias_any_phase_dB < disk.alias_any_phase_dB and gaussian.passband_dB > disk.passband_dB
    words = "\n".join([*in_words(STATES, zone_plate), *gaussian_in_words(STATES, [zone_plate])])
    assert "the disk aliases 14.2 dB less than a box average of 8 x 8 pixels and keeps 10.5 dB less" in words
    assert words.count("The Gaussian of equal variance aliases") == 3 and words.count("better on both counts") == 3
    assert "In 3 of 3 cases" in words
    assert len(energy_table(STATES, zone_plate)) == 2 + len(STATES[0].filters)


def test_plain_decimation_is_the_yardstick(zone_plate: SetReport) -> None:
    for k in (1, 2, 3):
        none = zone_plate.at(k, "none")
        assert none.alias_dB == none.passband_dB == none.alias_any_phase_dB == 0
        assert none.residual_in_band == none.residual_alias == 0  # A_k is zero without a filter


def test_readings_agree_with_the_pyramids_own_views(zone_plate: SetReport) -> None:
    # The pyramid reflects borders where the benchmark is periodic, and gives pixels where the benchmark has spectra.
    pyramid, x = FocusPyramid(), chart("zone-plate", 256, torch.float64)
    for k, s in enumerate((8, 4, 2)):
        view, plain = (energy(torch.fft.fft2(image[0, 0]), s) for image in (pyramid.focused(x, k), x))
        assert zone_plate.at(k + 1, "disk").alias_dB == pytest.approx(dB(float(view.alias / plain.alias)), abs=0.1)
        assert float(view.total) == pytest.approx(float(pyramid.low(x, k)[0, 0].square().mean()), rel=1e-9)


def test_a_reading_pools_energies_over_images() -> None:
    states = decimated_states(FocusPyramid(image_size=64, states=2, rho_max=3.0))
    loud, quiet = chart("weave", 64)[0], 0.01 * chart("text", 64)[0]
    both, alone = (measure(states, images, 64, True).report("x") for images in ([loud, quiet], [loud]))
    assert both.images == 2
    assert both.at(1, "disk").alias_dB == pytest.approx(alone.at(1, "disk").alias_dB, abs=0.05)
    assert both.at(1, "disk").alias_dB_p90 - both.at(1, "disk").alias_dB_p10 > 1


# ------------------------------------------------------------------------------------------------ (b) shifts


def canvases(size: int = 64, smooth: bool = True) -> list[Tensor]:
    small = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    side = size + 2 * MARGIN
    if smooth:
        return [F.interpolate(small, size=(side, side), mode="bicubic").clamp(-1, 1)]
    return [torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1]


def toy(look: Any) -> Subject:
    return Subject("toy", 64, (1,), lambda x: Prefixes([look(x)], [x.flatten(1)[:, :8].round().long()]))


def blurred(x: Tensor) -> Tensor:
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype)
    kernel = (taps[:, None] * taps)[None, None].expand(3, 1, 3, 3)
    return F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), kernel, groups=3)


def test_a_moved_window_has_its_content_further_right_and_down() -> None:
    x = torch.randn(1, 1, 20, 20, dtype=torch.float64)
    assert torch.equal(moved(x, 10, 0), x[..., 5:15, 5:15])
    assert torch.equal(moved(x, 10, 3), x[..., 2:12, 2:12])
    wave = torch.cos(2 * math.pi * torch.arange(80, dtype=torch.float64) / 16)
    image = wave.expand(1, 1, 80, 80)
    expected = torch.cos(2 * math.pi * (torch.arange(80, dtype=torch.float64) - 1.25) / 16)[24:56].expand(1, 1, 32, 32)
    assert torch.allclose(moved(image, 32, 1.25), expected, atol=2e-2)


def test_two_half_shifts_are_a_whole_one() -> None:
    x = canvases()[0]
    twice = shifts._fraction(shifts._fraction(x, 0.5), 0.5)
    assert float((moved(twice, 32, 0) - moved(x, 32, 1)).square().mean()) < 1e-5 * float(x.square().mean())


def test_shifts_of_what_moves_along_and_of_what_does_not() -> None:
    exact = measure_shifts(toy(lambda x: x), canvases(smooth=False), (1.0, 8.0))
    assert all(r.psnr is None and r.unmoved is not None and r.unmoved < 10 for r in exact)
    equivariant = measure_shifts(toy(blurred), canvases())
    assert all(r.psnr is None or r.psnr > 60 for r in equivariant)
    assert all(r.gain_dB is None or r.gain_dB > 20 for r in equivariant)
    decimating = toy(lambda x: x[..., ::8, ::8].repeat_interleave(8, -1).repeat_interleave(8, -2))
    aliased = {r.shift: r for r in measure_shifts(decimating, canvases())}
    assert all(r.psnr is not None and r.psnr < 40 for shift, r in aliased.items() if shift < 8)
    assert aliased[8.0].psnr is None  # its own period
    frozen = measure_shifts(toy(lambda x: torch.ones_like(x) * torch.linspace(0, 1, 64)), canvases(), (2.0,))
    assert frozen[0].gain_dB == pytest.approx(0)


def test_tokens_are_compared_between_the_two_images() -> None:
    reading = measure_shifts(toy(lambda x: x), canvases(smooth=False), (1.0,))[0]
    assert 0.2 < reading.tokens_changed < 1
    same = Subject("toy", 64, (1,), lambda x: Prefixes([x], [torch.zeros(len(x), 4, dtype=torch.long)]))
    assert measure_shifts(same, canvases(), (1.0,))[0].tokens_changed == 0


def test_a_published_file_is_plain_var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = small_vae(load_upstream(), patch_nums=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)).eval()
    file = tmp_path / "vae_ch32.pth"
    torch.save(vae.state_dict(), file)
    subject = open_subject(str(file), "cpu")
    assert (subject.size, subject.states, subject.border) == (256, (1, 2, 3, 4), 16)
    x = torch.rand(1, 3, 256, 256) * 2 - 1
    with torch.no_grad():
        seen = subject.look(x)
        tokens = vae.img_to_idxBl(x)
    assert torch.equal(torch.cat(seen.tokens_K, 1), torch.cat(tokens, 1))
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(UsageError, match=r" holds no VQVAE"):
        open_subject(str(file), "cpu")


# ------------------------------------------------------------------------------------------------ (c) samples


def write_npz(path: Path, images_NHHC: np.ndarray) -> Path:
    np.savez(path, images_NHHC)
    return path


def noise_images(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 196, (count, size, size, 3), dtype=np.uint8)


def test_equal_sets_have_equal_spectra_in_either_form(tmp_path: Path) -> None:
    pixels = noise_images(5)
    file = write_npz(tmp_path / "a.npz", pixels)
    folder = tmp_path / "pngs"
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    from_npz, from_folder = open_images(str(file), None), open_images(str(folder), 32)  # as samples and as a reference
    assert (from_npz.count, from_npz.size) == (from_folder.count, from_folder.size) == (5, 32)
    report = compare(from_npz, from_folder)
    assert report.power_samples == report.power_reference and report.samples == report.reference == 5
    assert all(octave.difference_dB == 0 for octave in report.octaves)


def test_blurred_samples_lack_the_finest_octave(tmp_path: Path) -> None:
    sharp = noise_images(8)
    soft = np.stack(
        [np.asarray(Image.fromarray(i).resize((16, 16), Image.Resampling.BOX).resize((32, 32))) for i in sharp]
    )
    report = compare(
        open_images(str(write_npz(tmp_path / "soft.npz", soft)), None),
        open_images(str(write_npz(tmp_path / "sharp.npz", sharp)), None, 32),
    )
    assert report.octaves[-1].high == 0.5 and report.octaves[-1].difference_dB < -6
    assert report.octaves[-1].difference_dB < report.octaves[0].difference_dB - 5
    # white noise: the power per bin, times all bins, is its variance
    variance = float(((sharp / 127.5) - 1).var())
    assert np.mean(report.power_reference) * 32 * 32 == pytest.approx(variance, rel=0.1)


def test_a_part_of_a_set_is_spread_evenly(tmp_path: Path) -> None:
    pixels = np.stack([np.full((8, 8, 3), 20 * i, np.uint8) for i in range(6)])
    images = open_images(str(write_npz(tmp_path / "a.npz", pixels)), 3)
    assert [round((float(i.mean()) + 1) * 127.5) for i in images.images] == [0, 40, 80]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "absent.npz", "neither a file nor a folder"),
        (lambda p: write_npz(p / "a.npz", noise_images(2).astype(np.float32)), "it must be images"),
        (lambda p: write_npz(p / "b.npz", noise_images(2, 16)), "16 px but the samples have 32"),
        (lambda p: (p / "c.npz").write_bytes(b"no zip") and p / "c.npz", "is not an npz file, or is damaged"),
        (lambda p: p, "holds no images"),
    ],
)
def test_bad_sample_sets(tmp_path: Path, make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_images(str(make(tmp_path)), None, 32)


def test_samples_in_a_folder_must_be_of_one_size(tmp_path: Path) -> None:
    write_images(tmp_path, 2, size=(40, 32))
    with pytest.raises(UsageError, match="40 x 32 pixels; samples must be square"):
        open_images(str(tmp_path), None)


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    write_images(folder / "some", 3)
    write_images(folder / "others" / "deeper", 2, size=(60, 90), seed=1)
    yield folder


def test_the_command_end_to_end_and_twice_the_same(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    npz = write_npz(tmp_path / "s.npz", noise_images(3))
    samples = ("--samples", str(npz), "--reference", str(photographs))
    for name in ("a", "b"):
        out = ("--out", str(tmp_path / name), "--json", str(tmp_path / f"{name}.json"))
        assert run_main("aliasing", *SMALL, "--data", str(photographs), *samples, *out) == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert set(numbers["sets"]) == {"zone-plate", "gratings", "edges", "text", "weave", "photographs"}
    assert numbers["sets"]["photographs"]["images"] == 5 and numbers["sets"]["photographs"]["windowed"]
    assert [curve["state"] for curve in numbers["wiener"]] == [1, 2]
    assert all(0 <= gain <= 1 for curve in numbers["wiener"] for gain in curve["decimated"] + curve["residual"])
    assert numbers["samples"]["octaves"][-1]["difference_dB"] > 10  # noise against smooth images
    page = (tmp_path / "a" / "report.md").read_text()
    for picture in ("transfer.png", "tradeoff.png", "views.png", "wiener.png", "samples.png"):
        assert f"({picture})" in page
        assert Image.open(tmp_path / "a" / picture).width > 300
    printed = capsys.readouterr().out
    assert "zone-plate: tiles seamlessly" in printed and "photographs: 5 images, Hann window" in printed
    assert "weave: tiles seamlessly" in page and "weave: tiles seamlessly" not in printed
    assert "Area pooling (the box average) and bicubic with antialiasing are the usual ways" in printed
    assert "smaller than 64 px" in printed  # two of them are 60 pixels high


def test_two_tokenizers_side_by_side(
    tmp_path: Path, image_tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert run_main("tokenizer", *TINY, "--data", str(image_tree), "--out", str(run)) == 0
    twin = shutil.copytree(run, tmp_path / "twin")
    out = ("--out", str(tmp_path / "out"), "--json", str(tmp_path / "n.json"), "--device", "cpu")
    data = ("--data", str(image_tree / "val"), "--images", "2")
    assert run_main("aliasing", *SMALL, "--tokenizer", str(run), str(twin), *data, *out) == 0
    first, second = (
        [ShiftReading(**r) for r in readings]
        for readings in json.loads((tmp_path / "n.json").read_text())["tokenizers"].values()
    )
    assert first == second and {(r.state, r.shift) for r in first} == {
        (state, shift) for state in (1, 2) for shift in shifts.SHIFTS
    }
    printed = capsys.readouterr().out
    assert "no notable difference" in printed and "zone-plate" in printed
    assert (tmp_path / "out" / "shifts.png").is_file()
    (twin / "checkpoints").rename(tmp_path / "gone")
    (twin / "checkpoints").mkdir()
    (twin / "checkpoints" / "step-00000001-0123456789abcdef.pt").touch()
    assert run_main("aliasing", *SMALL, "--tokenizer", str(twin), "--images", "2", *out) == 0
    printed = capsys.readouterr().out
    assert "zone-plate" not in printed, "of the tokenizers alone, where no photographs are given"
    assert "twin is not finished: these are its weights after 1 of" in printed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data", "nowhere"], "--data: nowhere is neither a folder nor an image"),
        (["--focus-states", "1"], "--focus-states 1 decimates nothing"),
        (["--image-size", "100"], "100 is not a multiple of the encoder stride 16"),
        (["--image-size", "48", "--focus-states", "2", "--rho-max", "3"], "at least 64 pixels, got 48"),
        (["--samples", "a.npz"], "--samples needs --reference; give both or neither"),
        (["--tokenizer", "nowhere"], "--tokenizer: nowhere is neither a run folder nor a file"),
        (["--out", "file"], "--out: file cannot be a folder"),
        (["--json", "folder"], "--json: folder is a folder"),
        (["--tokenizer"], "expected at least one argument"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder").mkdir()
    assert run_main("aliasing", *argv) == 2
    captured = capsys.readouterr()
    assert words in captured.err and "Single sinusoids" not in captured.out
