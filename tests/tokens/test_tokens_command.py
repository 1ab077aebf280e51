"""The `tokens` command before any work: whose images, and what the cache will hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import TINY, TRAINED_WITH, run_main

from refocus_ext.commands import command_line
from refocus_ext.errors import UsageError
from refocus_ext.images.sources.folder import image_folder
from refocus_ext.images.sources.kinds import demo_photographs
from refocus_ext.images.views import ViewPlan
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.options.presets import presets_of
from refocus_ext.tokens.command import default_crops, plan_lines, train_images
from refocus_ext.tokens.options import TokensOptions
from refocus_ext.tokens.shards import Layout
from refocus_ext.tokens.trained_tokenizer import Tokenizer


def tokenizer_of(data: str = "") -> Any:
    """As much of a tokenizer as the plan looks at."""
    trained_with = dataclasses.replace(TRAINED_WITH, data=data)
    vae: Any = SimpleNamespace()
    return Tokenizer(vae, None, FocusPyramid(image_size=64, states=3), {}, trained_with, Path("runs/x"))


def test_the_images_are_the_commands_else_the_tokenizers_else_the_demos(image_tree: Path, tmp_path: Path) -> None:
    data = str(image_tree)
    expected = (image_folder(data, "train"), f"{data}/train")
    assert train_images(tokenizer_of(data=str(tmp_path / "elsewhere")), data, 0.0) == expected
    assert train_images(tokenizer_of(data=data), "", 0.0) == expected
    assert train_images(tokenizer_of(), "", 0.0) == (demo_photographs(), "the demo photographs")
    with pytest.raises(UsageError, match="elsewhere is not a folder"):
        train_images(tokenizer_of(data=str(tmp_path / "elsewhere")), "", 0.0)


def test_the_plan_counts_views_and_tokens() -> None:
    plan, layout = ViewPlan(4, True, 0), Layout(images=5000, views=8, structure=30, alias=20, shard_images=2048)
    lines = plan_lines(tokenizer_of(), "pictures/train", plan, layout)
    assert lines == [
        "tokenizer: runs/x, crops of 64 px",
        "images: 5,000 of pictures/train, 8 views of each (4 random crops, each mirrored as well)",
        "tokens: 30 structure + 20 alias per view, 2,000,000 in all, 4.1 MB in 3 shards",
    ]


@pytest.mark.parametrize("name", [*presets_of("distill"), "a file"])
def test_it_makes_the_crops_that_distill_reads(name: str, tmp_path: Path) -> None:
    """Without --crops in either: `tokens` makes what `distill` with the same tokenizer would make."""
    if name == "a file":
        run = tmp_path / "vae.pth"
        run.touch()
    else:
        run = tmp_path / "run"
        run.mkdir()
        (run / "config.json").write_text(json.dumps({"options": {"preset": name}}))
    distill: Any = command_line().parse_args(["distill", "--tokenizer", str(run)])
    assert default_crops(TokensOptions(tokenizer=str(run))) == distill.crops > 0


def test_one_of_a_thing_is_no_plural() -> None:
    plan, layout = ViewPlan(1, False, 0), Layout(images=1, views=1, structure=30, alias=20, shard_images=1)
    assert "1 view of each (1 random crop)" in plan_lines(tokenizer_of(), "pictures/train", plan, layout)[1]


def test_a_missing_tokenizer_is_named_by_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("tokens", "--tokenizer", str(tmp_path / "nowhere"), "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"refocus: --tokenizer: {tmp_path / 'nowhere'} does not exist") and error.count("\n") == 1


def test_an_unfinished_tokenizer_is_refused_unless_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tokens would be worth nothing once its training goes on; `distill` refuses it in the same words."""
    run = tmp_path / "run"
    assert run_main("tokenizer", *TINY, "--out", str(run)) == 0
    config = json.loads((run / "config.json").read_text())
    config["options"]["steps"] = 60  # as an interrupted run of more steps
    (run / "config.json").write_text(json.dumps(config))
    distill = (
        "distill",
        "--depth",
        "2",
        "--crops",
        "1",
        "--batch-size",
        "4",
        "--steps",
        "1",
        "--out",
        str(tmp_path / "d"),
    )
    for words in (("tokens", "--crops", "1"), distill):
        capsys.readouterr()
        assert run_main(*words, "--tokenizer", str(run)) == 2
        said = capsys.readouterr().err
        assert "6 of 60 steps" in said and "--unfinished takes it as it is" in said
    assert not (run / "tokens").exists() and not (tmp_path / "d").exists()
    assert run_main("tokens", "--crops", "1", "--tokenizer", str(run), "--unfinished") == 0
