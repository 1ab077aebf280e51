"""Runs with the teachers that have weights of their own: what is saved and resumed, what the student gets, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import inside
from test_distill import TINY, assert_same, records, sentence, weights
from test_distill_distributed import stage_one
from torch import Tensor

from refocus_ext.commands import main
from refocus_ext.distill.networks import Networks, build_networks
from refocus_ext.distill.objective import DistillObjective
from refocus_ext.distill.training import DistillTraining
from refocus_ext.engine.checkpoints import load_checkpoint
from refocus_ext.tokenizer.averages import decay_at

SHORT = ("--steps", "3", "--save-every", "1", "--keep", "9", "--samples", "0")
ZERO = ("--lambda-feat", "0", "--lambda-logit", "0")


class Runs:
    """`runs("name", options...)` distils into a folder of that name; returns the exit code."""

    def __init__(self, root: Path) -> None:
        self.root, self.tokenizer = root, stage_one(root)

    def __call__(self, name: str, *options: str) -> int:
        words = ("--tokenizer", str(self.tokenizer), "--out", str(self.root / name))
        return main(["distill", *TINY, *SHORT, *words, *options])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """With a run of each kind whose teacher another can take."""
    made = Runs(tmp_path_factory.mktemp("kinds"))
    for kind in ("separate", "ema"):
        assert made(kind, "--teacher", kind) == 0
    return made


def frozen(runs: Runs, kind: str = "separate") -> tuple[str, ...]:
    return "--teacher", "frozen", "--teacher-from", str(runs.root / kind)


def state_at(run: Path, step: int) -> dict[str, Any]:
    (file,) = (run / "checkpoints").glob(f"step-{step:08d}-*")
    return load_checkpoint(file)


# ------------------------------------------------------------------------------------------------ the average


def test_the_average_follows_each_step_and_is_saved_without_moments(runs: Runs) -> None:
    states = [state_at(runs.root / "ema", step) for step in (1, 2, 3)]
    for step in (1, 2):
        d = decay_at(step + 1, 0.999)
        for name, value in states[step]["var"].items():
            ours, before = states[step]["teacher"][f"var.{name}"], states[step - 1]["teacher"][f"var.{name}"]
            torch.testing.assert_close(ours, d * before + (1 - d) * value if value.is_floating_point() else value)
    assert not any(name.startswith("var.") for name in states[0]["teacher_optimizer"]["state"])
    assert any(name.startswith("aliases.") for name in states[0]["teacher_optimizer"]["state"])
    config = json.loads((runs.root / "ema" / "config.json").read_text())["options"]
    assert (config["lambda_feat"], config["lambda_logit"]) == (0, 1) and "teacher_decay" not in config
    assert "teacher.pth" in json.loads((runs.root / "ema" / "config.json").read_text())["weights"]


@pytest.mark.parametrize("kind", ["ema", "ema without aliases", "copies", "frozen"])
def test_resumed_runs_end_in_the_same_bits(runs: Runs, kind: str) -> None:
    options: tuple[str, ...] = ("--teacher", kind.split()[0])
    if "without" in kind:
        options = (*options, "--teacher-aliases", "none")
    elif kind == "frozen":
        options = frozen(runs)
    name = kind.replace(" ", "-") + "-resumed"
    assert runs(name, *options) == 0
    whole = runs.root / f"{name}-whole"
    shutil.copytree(runs.root / name, whole)
    for step in (2, 3):
        next((runs.root / name / "checkpoints").glob(f"step-{step:08d}-*")).unlink()
    assert runs(name, *options) == 0
    files = ["var_d2.pth"] if kind == "frozen" else ["var_d2.pth", "teacher.pth"]
    for file in files:
        assert_same(weights(runs.root / name, file), weights(whole, file))
    assert (runs.root / name / "teacher.pth").exists() == (kind != "frozen")
    state = state_at(runs.root / name, 3)
    assert ("teacher" in state, "teacher_optimizer" in state) == (kind != "frozen", kind in ("ema", "copies"))


# ------------------------------------------------------------------------------------------------ the student


def test_no_teacher_touches_the_student_but_by_distillation(runs: Runs) -> None:
    """With both lambdas 0 its bits are those of --teacher off: in two micro-batches too, so no teacher takes random numbers."""
    halves = ("--accumulate", "2", "--save-every", "0", "--steps", "2", "--picture-every", "2")
    assert runs("off", "--teacher", "off", *halves) == 0
    for kind in ("copies", "ema"):
        assert runs(f"zero-{kind}", "--teacher", kind, *ZERO, *halves) == 0
        assert_same(weights(runs.root / f"zero-{kind}"), weights(runs.root / "off"))
    assert runs("zero-frozen", *frozen(runs), *ZERO, *halves) == 0
    assert_same(weights(runs.root / "zero-frozen"), weights(runs.root / "off"))


@pytest.mark.parametrize("kind", ["separate", "ema"])
def test_a_frozen_teacher_does_not_change(runs: Runs, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    built: list[Networks] = []

    def build(*args: Any) -> Networks:
        built.append(build_networks(*args))
        return built[-1]

    monkeypatch.setattr("refocus_ext.distill.command.build_networks", build)
    assert runs(f"frozen-{kind}", *frozen(runs, kind)) == 0
    teacher = built[0].teacher
    assert teacher is not None
    assert_same(inside(teacher).state_dict(), weights(runs.root / kind, "teacher.pth"))
    record = records(runs.root / f"frozen-{kind}")[0]
    total = record["train/ce_student"] + record["train/feat"] + 0.5 * record["train/kl"]
    assert record["train/loss"] == pytest.approx(total, rel=1e-5) and "train/teacher/grad_norm" not in record


@pytest.mark.parametrize("word", ["own", "other", "constant"])
def test_the_teacher_is_shown_what_the_option_says(runs: Runs, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    given: list[Tensor] = []
    shown: list[list[Tensor]] = []
    tokens, forward = DistillTraining._tokens, DistillObjective.forward
    embeds: list[Any] = []

    def recorded(self: DistillTraining, batch: Any) -> Any:
        embeds.append(self.embed)
        result = tokens(self, batch)
        given.append(result[2])
        return result

    def seen(self: DistillObjective, label: Tensor, x: Tensor, idx: Tensor, alias_K: list[Tensor]) -> Any:
        shown.append(alias_K)
        return forward(self, label, x, idx, alias_K)

    monkeypatch.setattr(DistillTraining, "_tokens", recorded)
    monkeypatch.setattr(DistillObjective, "forward", seen)
    assert runs(f"shown-{word}", "--steps", "1", "--teacher-aliases", word) == 0
    own, expected = given[0], {"own": given[0], "other": given[0][[2, 3, 0, 1]], "constant": 0 * given[0]}[word]
    assert all(torch.equal(a, b) for a, b in zip(shown[0], embeds[0].alias(expected), strict=True))
    assert word == "own" or not torch.equal(expected, own)
    assert {"val/gap_teacher", "val/gap_other", "val/gap_constant"} <= set(records(runs.root / f"shown-{word}")[-1])


# ------------------------------------------------------------------------------------------------ the plan


def test_self_distillation_needs_no_alias_tokens(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = str(runs.root / "data"), str(runs.root / "plain")
    words = "--preset demo --image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --codebook-size 64 --latent-channels 8"
    more = ["--batch-size", "4", "--steps", "1", "--warm-autoencoder", "0", "--alias", "off", "--picture-every", "0"]
    code = main(["tokenizer", *words.split(), *more[:-2], "--data", data, "--out", out])
    assert code == 0
    capsys.readouterr()
    options = ("--tokenizer", out, "--teacher", "ema", "--teacher-aliases", "none", "--steps", "1")
    assert runs("of-plain", *options) == 0
    said = capsys.readouterr().out
    assert "teacher (ema): without alias tokens: an averaged VAR that no optimizer holds, +" in said
    assert "The teacher, without alias tokens, predicts" in said and "another image" not in said


def test_the_plan_says_what_is_shown(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs("dry", "--dry-run", "--teacher", "copies", "--teacher-aliases", "constant", "--accumulate", "auto") == 0
    said = capsys.readouterr().out
    assert "teacher (copies): alias gates in the last 2 blocks" in said and "GFLOP per image" in said
    assert "in training it is shown code 0 everywhere (--teacher-aliases constant), as a control" in said


def test_a_teacher_that_does_not_fit_is_one_sentence(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    take = frozen(runs)
    assert runs("on", "--steps", "1") == 0
    capsys.readouterr()

    def refused(*options: str) -> str:
        assert runs("refused", *options) == 2 and not (runs.root / "refused").exists()
        return sentence(capsys)

    assert "--teacher-from: " in (said := refused(*frozen(runs, "on"))) and "was trained with --teacher on" in said
    assert "is not the folder of a `distill` run" in refused(*frozen(runs, "run"))
    assert "has depth = 2, the student 3" in refused(*take, "--depth", "3")
    assert "has num_classes = 2, the student 5" in refused(*take, "--num-classes", "5")
    assert "its teacher reads alias tokens; omit --teacher-aliases none" in refused(*take, "--teacher-aliases", "none")
    assert "--mask privileged is not that of the teacher" in refused(*take, "--mask", "privileged")
    assert "leaves one image in each" in refused("--teacher-aliases", "other", "--accumulate", "4")
    unfinished = runs.root / "unfinished"
    shutil.copytree(runs.root / "separate", unfinished)
    next((unfinished / "checkpoints").glob("step-00000003-*")).unlink()
    assert "has trained 2 of its 3 steps" in refused(*frozen(runs, "unfinished"))
    shutil.copytree(runs.root / "separate", changed := runs.root / "changed")
    config = json.loads((changed / "config.json").read_text())
    config["tokenizer"]["weights"]["vae.pth"] = "0" * 64
    (changed / "config.json").write_text(json.dumps(config))
    assert "was trained on the tokens of another tokenizer" in refused(*frozen(runs, "changed"))
    shutil.copy(runs.root / "ema" / "teacher.pth", unfinished / "teacher.pth")
    next((unfinished / "checkpoints").glob("step-00000002-*")).rename(unfinished / "x")
    shutil.rmtree(unfinished / "checkpoints")
    assert "is not the file that its run wrote" in refused(*frozen(runs, "unfinished"))
