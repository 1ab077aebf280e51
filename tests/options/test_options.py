"""Options: the same values, bytes and identities as before typed-argparse, presets in one table, values that follow steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import parsed, run_main

from refocus_ext.commands import COMMANDS, command_line
from refocus_ext.distill.options import DistillOptions
from refocus_ext.errors import UsageError
from refocus_ext.options import presets
from refocus_ext.sampling.options import SampleOptions
from refocus_ext.tokenizer.options import TokenizerOptions

# Options and identity of command lines, as the argparse of revision 04adc42 wrote them into config.json.
BEFORE = json.loads((Path(__file__).parent / "before_typed_argparse.json").read_text())

SINCE: dict[str, dict[str, object]] = {
    "tokenizer": {"steps": 600},
    "distill": {"steps": 240, "lr": 2.4e-3, "picture_every": 80},
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No runs/ folder: distill looks into that of its tokenizer."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("line", BEFORE)
def test_config_json_is_byte_for_byte_what_it_was(line: str) -> None:
    options = parsed(*line.split())
    told = options.told()  # some were part of the identity
    for ours, theirs in ((options.to_dict(), "options"), (options.identity(), "identity")):
        if theirs == "identity" and options.stage == "ablate":  # its runs are bound by names of its own
            continue
        before = BEFORE[line][theirs]
        if "attention" in before:
            before["attention"] = "auto"  # another default since then, the same values on a CPU
        if options.stage == "tokenizer" and options.preset != "demo":
            before["prefix"] = 0.0  # another default since then, which resuming such a run leaves aside
        if options.preset == "demo" and options.stage in SINCE:  # the demo has another recipe since then
            before |= {name: value for name, value in SINCE[options.stage].items() if name in before}
        if options.stage == "distill":
            before["small_images"] = ""  # since then as in the tokenizer's run
            before["crops"] = (
                {4: 10}.get(before["crops"], before["crops"]) if options.preset != "demo" else before["crops"]
            )
        if theirs == "identity":
            before = {name: value for name, value in before.items() if name not in told}
        assert json.dumps({name: value for name, value in ours.items() if name in before}) == json.dumps(before)
        # options since then: off unless they are typed, but for the size of the codebook's sample and what prefixes train
        added = [name for name in ours if name not in before and name not in ("codebook_images", "prefix_trains")]
        assert not options.given(*added)


def test_options_do_not_change() -> None:
    unknown: Any = SampleOptions
    options = SampleOptions(seed=3)
    assert options.seed == 3 and options.top_k == 900 and options.compare is None
    for change in ({"seed": 4}, {"sed": 4}):
        with pytest.raises(AttributeError, match=f"SampleOptions.{next(iter(change))} cannot be set"):
            setattr(options, *change.popitem())
    assert options.replace(seed=4).seed == 4 and options.seed == 3
    assert options == SampleOptions(seed=3) != options.replace(seed=4)
    with pytest.raises(TypeError, match="SampleOptions has no option 'sed'"):
        unknown(sed=4)
    with pytest.raises(TypeError, match="has no option 'sed'"):
        options.replace(sed=4)


def test_what_is_typed_wins_over_the_preset_and_the_preset_over_the_default() -> None:
    options = parsed("tokenizer", "--preset", "paper", "--ch", "64")
    assert (options.ch, options.focus_states, options.l2) == (64, 4, 1.0)
    assert parsed("tokenizer", "--blur=none").blur == "none"
    assert type(parsed("tokenizer", "--patch-nums", "1_2_4").patch_nums) is tuple


def test_deep_students_of_the_demo_have_a_recipe_of_their_own() -> None:
    """What is typed wins over it, and other presets have none."""
    both = lambda *words: (parsed("distill", *words).steps, parsed("distill", *words).lr)  # noqa: E731
    assert both() == both("--depth", "12") == (240, 2.4e-3)
    assert both("--depth", "13") == both("--depth", "20") == (80, 1.2e-3)
    assert both("--depth", "20", "--steps", "7") == (7, 1.2e-3)
    assert both("--preset", "letters", "--depth", "20") == both("--preset", "letters")


def test_a_value_of_the_wrong_type_is_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"tokenizer": {**presets.PRESETS["demo"]["tokenizer"], "patch_nums": ("1", "2")}}
    monkeypatch.setitem(presets.PRESETS, "demo", values)
    with pytest.raises(TypeError, match="'patch_nums'"):
        parsed("tokenizer")


def test_every_option_of_every_command_has_help() -> None:
    parser = command_line()
    for name in COMMANDS:
        assert {"--help", "-h"} < parser.flags_of(name)
    for cls in (TokenizerOptions, DistillOptions, SampleOptions):
        assert all(option.help and option.heading for option in cls.fields().values())


# ------------------------------------------------------------------------------------------------ presets


@pytest.fixture
def paper_1024(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset for the stages 1 and 2 alone: one entry."""
    tokenizer = {**presets.PRESETS["paper"]["tokenizer"], "image_size": 1024}
    monkeypatch.setitem(
        presets.PRESETS, "paper-1024", {"tokenizer": tokenizer, "distill": presets.PRESETS["paper"]["distill"]}
    )


def test_another_preset_is_one_entry(paper_1024: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed("tokenizer", "--preset", "paper-1024").image_size == 1024
    assert parsed("distill", "--preset", "paper-1024").depth == 16
    assert run_main("tokenizer", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "--preset {demo,letters,letters-128,vanilla,paper,paper-512,vaex,paper-1024}" in out
        and "paper-1024 1024" in out
    )


def test_a_preset_without_a_stage_is_refused(paper_1024: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("ablate", "--preset", "paper-1024") == 2
    error = capsys.readouterr().err
    assert error == (
        "refocus: preset paper-1024 has no values for `ablate`; give --preset one of demo, letters, letters-128, "
        "vanilla, paper, paper-512, vaex.\n"
    )


def test_an_added_option_is_recorded_where_its_preset_turns_it_on() -> None:
    """Otherwise a run that switched it off would be taken for one of its preset."""
    off = parsed("tokenizer", "--preset", "vaex", "--disc", "patch")
    on, before = parsed("tokenizer", "--preset", "vaex"), parsed("tokenizer", "--preset", "paper")
    assert (on.identity()["disc"], off.identity()["disc"]) == ("dino", "patch")
    assert not {"disc", "disc_augment", "dropout", "bcr"} & before.identity().keys()


def test_the_recipe_of_vaex() -> None:
    ours, papers = parsed("tokenizer", "--preset", "vaex").to_dict(), parsed("tokenizer", "--preset", "paper").to_dict()
    changed = {name: value for name, value in ours.items() if papers.get(name) != value}
    assert changed == {
        "preset": "vaex", "disc": "dino", "disc_augment": "on", "bcr": 4.0, "gan_floor": 0.015, "gan_start": 0.22,
        "gan_warmup": 2000, "dropout": 0.05, "batch_size": 768, "lr": 3e-4, "lr_end": 0.3, "weight_decay": 0.005, "clip": 10.0,
    }  # fmt: skip
    assert (papers["clip"], papers["gan_floor"], papers["codebook_images"]) == (1.0, 0.1, 1024)
    assert {**parsed("distill", "--preset", "vaex").to_dict(), "preset": ""} == {
        **parsed("distill", "--preset", "paper").to_dict(), "preset": "",
    }  # fmt: skip


def write_config(run: Path, **options: object) -> Path:
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"command": "tokenizer", "options": options}))
    return run


def test_distill_takes_the_preset_of_its_tokenizer(tmp_path: Path) -> None:
    words = ["distill", "--tokenizer", str(write_config(tmp_path / "run", preset="vanilla"))]
    assert parsed(*words).preset == "vanilla" and parsed(*words, "--preset", "demo").preset == "demo"
    demo = ["distill", "--tokenizer", str(write_config(tmp_path / "demo", preset="demo"))]
    assert parsed(*demo).preset == "demo" and parsed(*demo, "--data", "d").preset == "paper"
    assert parsed("distill").preset == "demo", "there is no run yet"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "paper-2048"}, "has the preset 'paper-2048', which this version does not know"),
        ({}, "names no preset"),
    ],
)
def test_a_tokenizer_of_an_unknown_preset_is_never_taken_for_a_demo(
    options: dict[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_config(tmp_path / "run", **options)
    for data in ([], ["--data", "d"]):
        assert run_main("distill", "--tokenizer", str(run), *data) == 2
        assert f"{words}; give --preset one of demo" in capsys.readouterr().err
    assert parsed("distill", "--tokenizer", str(run), "--preset", "demo").preset == "demo"


def test_stages_are_named_in_one_place() -> None:
    assert {stage for stages in presets.PRESETS.values() for stage in stages} == {"tokenizer", "distill", "ablate"}
    with pytest.raises(UsageError, match="preset nothing does not exist; give --preset one of demo"):
        presets.preset("nothing", "tokenizer")


# ------------------------------------------------------------------------------------------------ what follows the steps


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", (200, 20)),
        ("--steps 600", (200, 20)),
        ("--steps 30", (10, 1)),
        ("--steps 6000", (2000, 200)),
        ("--steps 30 --warm-autoencoder 3", (3, 1)),
        ("--steps 30 --warmup 7", (10, 7)),
        ("--preset paper --steps 1000", (10, 10)),
    ],
)
def test_warm_up_follows_the_steps_unless_it_is_typed(words: str, expected: tuple[int, int]) -> None:
    options = parsed("tokenizer", *words.split())
    assert (options.warm_autoencoder, options.warmup) == expected
    assert options.save_every == (1000 if "paper" in words else 100), "intervals do not follow"


def test_a_short_demo_starts(tmp_path: Path) -> None:
    assert run_main("tokenizer", "--steps", "30", "--dry-run", "--out", str(tmp_path / "run")) == 0


def test_help_says_what_follows_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("tokenizer", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "(default: demo 200, letters 200, letters-128 200, others 1000; scales with --steps)" in out


def test_a_run_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    """Its warm-up was the preset's own, whatever the steps."""
    words = ["tokenizer", "--steps", "1200", "--out", str(tmp_path / "run")]
    write_config(tmp_path / "run", steps=1200, warm_autoencoder=200, warmup=20)
    assert (parsed(*words).warm_autoencoder, parsed(*words).warmup) == (200, 20)
    assert parsed(*words, "--resume", "never").warm_autoencoder == 400
    assert parsed(*words, "--warm-autoencoder", "5").warm_autoencoder == 5
    assert parsed("tokenizer", "--steps", "2400", *words[3:]).warm_autoencoder == 800, "of other steps: another run"
    (tmp_path / "run" / "config.json").write_text("{")
    assert parsed(*words).warm_autoencoder == 400


def test_a_run_keeps_the_values_whose_default_has_changed_since(tmp_path: Path) -> None:
    """Prefixes trained all networks, with weight 1; what they train is recorded by no run of that time."""

    def prefixes(*more: str) -> tuple[float, str]:
        options = parsed("tokenizer", *more)
        return options.prefix, options.prefix_trains

    run, now = str(tmp_path / "run"), str(tmp_path / "now")
    write_config(tmp_path / "run", steps=900, warm_autoencoder=200, warmup=20, prefix=1.0)
    letters = ("--preset", "letters", "--data", "letters")
    assert prefixes(*letters, "--out", run) == (1.0, "all")
    assert prefixes(*letters, "--out", run, "--resume", "never") == (0.0, "decoder")
    assert prefixes(*letters, "--out", run, "--prefix", "0.5") == (0.5, "all"), "what is typed wins"
    write_config(tmp_path / "now", **parsed("tokenizer", *letters, "--prefix", "1").to_dict())
    assert prefixes(*letters, "--out", now) == (0.0, "decoder"), "another run than the one that typed it"
    assert parsed("tokenizer", *letters).unrecorded()["prefix_trains"] == "all"
    assert prefixes() == prefixes("--out", run) == (1.0, "all"), "the demo's are what they were"


# ------------------------------------------------------------------------------------------------ imports


def test_no_command_imports_what_it_may_not_need() -> None:
    heavy = {"timm", "matplotlib", "tensorboard", "scipy", "skimage", "torchmetrics", "torchvision", "torch._dynamo"}
    modules = {command.module for command in COMMANDS.values()}
    modules |= {"refocus_ext.evaluation.samples", "refocus_ext.evaluation.tokenizer", "refocus_ext.tokenizer.plan"}
    script = f"""
import importlib, sys
for module in {sorted(modules)}:
    importlib.import_module(module)
print(*({heavy} & set(sys.modules)))
"""
    result: Any = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_help_fits_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands that are given as examples stay on one line."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in COMMANDS:
        assert run_main(name, "--help") == 0
        lines = capsys.readouterr().out.splitlines()
        assert not [line for line in lines if len(line) > 80 and "bash run.sh" not in line], name
