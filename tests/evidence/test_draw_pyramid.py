"""`pyramid IMAGE`: the picture, its numbers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image
from runs import parsed, run_main

from refocus_ext.evidence.aliasing.pyramid_figure import GAP, HEAD, LEFT, SIDE, _beside_passband, draw, look
from refocus_ext.images.picture import to_image
from refocus_ext.optics.charts import chart
from refocus_ext.optics.pyramid import FocusPyramid

SMALL = ("--image-size", "64", "--focus-states", "3", "--rho-max", "6")


def test_a_photograph_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, 1)
    out, numbers = tmp_path / "new" / "figure.png", tmp_path / "n.json"
    argv = ("pyramid", str(tmp_path / "000.jpg"), *SMALL, "--out", str(out), "--json", str(numbers))
    assert run_main(*argv) == 0
    picture = Image.open(out)
    assert picture.width >= LEFT + 3 * (SIDE + GAP) + GAP
    report = json.loads(numbers.read_text())
    assert report["image"] == "000.jpg" and report["pyramid"]["rho_max"] == 6
    assert [(s["radius"], s["factor"]) for s in report["states"]] == [(6, 4), (3, 2), (0, 1)]
    assert report["states"][-1]["A_rms"] == 0
    printed = capsys.readouterr().out
    assert "6 px" in printed and str(out) in printed
    before = out.read_bytes()
    assert run_main(*argv) == 0 and out.read_bytes() == before


@pytest.mark.parametrize("blur", ["disk", "gaussian", "sinc", "none"])
def test_the_views_are_the_pyramids_and_are_drawn_pixel_by_pixel(blur: str) -> None:
    pyramid = FocusPyramid(image_size=128, states=3, rho_max=6.0, blur=blur)
    x = chart("weave", 128)
    states = look(pyramid, x, periodic=True)
    for k, state in enumerate(states):
        assert torch.equal(state.D, pyramid.decimated(x, k)) and torch.equal(state.A, pyramid.alias(x, k))
        assert torch.equal(state.L, pyramid.low(x, k)) and torch.equal(state.F, pyramid.focused(x, k))
    picture = draw(pyramid, x, states, "weave", periodic=True)
    box = (LEFT, HEAD, LEFT + SIDE, HEAD + SIDE)
    assert np.array_equal(np.asarray(picture.crop(box)), np.asarray(to_image(states[0].D[0], SIDE)))


def test_the_ledger_of_the_zone_plate() -> None:
    states = look(FocusPyramid(), chart("zone-plate", 256, torch.float64), periodic=True)
    for state, alias_L in zip(states, (-4.8, -11.5, -13.2), strict=False):
        assert state.alias_L_dB == pytest.approx(alias_L, abs=0.3) and state.alias_D_dB > 4
        assert state.A_in_band + state.A_alias == pytest.approx(1, abs=0.02) and state.A_in_band < 0.25
    assert (states[-1].A_rms, states[-1].A_in_band, states[-1].alias_D_dB) == (0, 0, -200)


def test_without_a_picture_it_draws_the_zone_plate(tmp_path: Path) -> None:
    default, named = tmp_path / "a.png", tmp_path / "b.png"
    assert run_main("pyramid", *SMALL, "--out", str(default)) == 0
    assert run_main("pyramid", "--chart", "zone-plate", *SMALL, "--out", str(named)) == 0
    assert default.read_bytes() == named.read_bytes()


def test_a_radius_below_rayleigh_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("pyramid", *SMALL[:-1], "2", "--out", str(tmp_path / "a.png")) == 0
    assert "note: focus state 1 has a blur radius of 2 px but is decimated by 4" in capsys.readouterr().out


def test_signs_are_said_in_words() -> None:
    assert _beside_passband(-3.0) == "alias 3.0 dB below the passband"
    assert _beside_passband(3.0) == "alias 3.0 dB above the passband"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere.jpg"], "there is no image nowhere.jpg"),
        (["text.txt"], "text.txt is not an image that can be opened"),
        (["a.jpg", "--chart", "text"], "are both given"),
        (["--chart", "moire"], "there is no 'moire'"),
        (["--image-size", "100"], "not a multiple of the encoder stride 16"),
        (["--focus-states", "9"], "use at most 5 states"),
        (["a.jpg", "b.jpg"], "'b.jpg' was not expected here"),
        (["--out", "."], "--out: . is a folder"),
        (["--imagesize", "64"], "did you mean --image-size?"),
    ],
)
def test_bad_input_is_one_sentence(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("no image")
    assert run_main("pyramid", *argv) == 2
    assert words in capsys.readouterr().err
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


def test_a_bare_word_and_several_words_are_parsed(capsys: pytest.CaptureFixture[str]) -> None:
    options = parsed("pyramid", "x.png", "--rho-max", "3")
    assert options.image == "x.png" and options.rho_max == 3
    several = parsed("aliasing", "--data", "a", "b", "--images", "3")
    assert several.data == ("a", "b") and several.images == 3 and several.tokenizer == ()
    assert run_main("pyramid", "--help") == 0
    assert "bash run.sh pyramid [IMAGE] [options]" in capsys.readouterr().out
    assert run_main("aliasing", "--help") == 0
    assert "--tokenizer RUN|FILE [RUN|FILE ...]" in capsys.readouterr().out
