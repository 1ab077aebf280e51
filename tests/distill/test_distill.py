"""Stage 2 end to end at the smallest size: the run folder, the student's independence, interruption and resume to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import inside, write_images
from torch import Tensor

from patches import load_upstream
from refocus_ext.commands import main
from refocus_ext.distill.networks import build_networks
from refocus_ext.distill.objective import DistillObjective
from refocus_ext.distill.training import DistillTraining
from refocus_ext.engine.checkpoints import load_checkpoint
from refocus_ext.engine.devices import DeviceKind
from refocus_ext.storage.atomic import sha256

TOKENIZER = tuple(
    "--preset demo --image-size 32 --patch-nums 1,2 --focus-states 2 --rho-max 3 --codebook-size 64 --latent-channels 8 "
    "--batch-size 4 --steps 6 --warm-autoencoder 2 --picture-every 6 --save-every 6".split()
)
TINY = tuple(
    "--preset demo --depth 2 --batch-size 4 --steps 6 --picture-every 3 --save-every 2 --keep 2 --log-every 2 --samples 2 --crops 2"
    " --lr 1e-2".split()
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tokenizer's run, with the images it was trained on beside it."""
    root = tmp_path_factory.mktemp("stage1")
    for number, name in enumerate(("cat", "dog")):
        write_images(root / "data" / "train" / name, 6, seed=number)
        write_images(root / "data" / "val" / name, 2, seed=10 + number)
    assert main(["tokenizer", *TOKENIZER, "--data", str(root / "data"), "--out", str(root / "run")]) == 0
    return root / "run"


@pytest.fixture
def run(tokenizer: Path, tmp_path: Path) -> Any:
    """`run("name", options...)` distils into a folder of that name; returns the exit code."""

    def distill(name: str, *options: str) -> int:
        return main(["distill", *TINY, "--tokenizer", str(tokenizer), "--out", str(tmp_path / name), *options])

    return distill


def weights(run: Path, name: str = "var_d2.pth") -> dict[str, Tensor]:
    return torch.load(run / name, weights_only=True)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [key for key in a if not torch.equal(a[key], b[key])]


def records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ the run


def test_a_run_ends_with_a_vanilla_student(
    run: Any, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run") == 0
    out = capsys.readouterr().out
    assert "scale  CE student" in out and "This is a demo" in out
    folder = tmp_path / "run"
    upstream = load_upstream()
    vae = upstream.build_vae(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2))
    vae.load_state_dict(weights(folder, "vae.pth"), strict=True)
    var = upstream.build_var(vae, depth=2, num_classes=2)
    var.load_state_dict(weights(folder), strict=True)
    assert (folder / "samples.png").is_file() and (folder / "teacher.pth").is_file()
    config = json.loads((folder / "config.json").read_text())
    assert config["student"] == {"depth": 2, "num_classes": 2, "shared_aln": False, "file": "var_d2.pth"}
    assert config["weights"] == {n: sha256(folder / n) for n in ("vae.pth", "var_d2.pth", "teacher.pth")}
    assert json.loads((folder / "classes.json").read_text()) == ["cat", "dog"]
    logged: dict[str, float] = {}
    for record in records(folder):
        logged |= record
    assert {
        "train/Lm",
        "train/L_16",
        "train/acc_32",
        "train/ce_teacher_scale2",
        "train/feat_block1",
        "train/kl",
    } <= set(logged)
    assert {"val/gap_teacher", "val/gap_other", "val/gap_constant", "val/ce_student_scale2"} <= set(logged)
    assert logged["val/ce_student"] < 0.98 * records(folder)[0]["train/ce_student"], "it learns"


def test_the_cache_gives_the_tokens_of_tokenizing_while_training(
    run: Any, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = str(tmp_path / "tokens")
    assert run("cached", "--cache", cache) == 0
    assert f"{cache} has no token cache yet: making it first" in capsys.readouterr().out
    assert run("again", "--cache", cache) == 0
    assert "complete and verified" in capsys.readouterr().out
    assert run("off", "--cache", "off") == 0
    assert_same(weights(tmp_path / "again"), weights(tmp_path / "cached"))
    losses = [[r["train/loss"] for r in records(tmp_path / n) if "train/loss" in r] for n in ("cached", "off")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # batches differ, and with them a token now and then
    assert run("other", "--cache", cache, "--crops", "3") == 2
    assert "crops = 2 (this run wants 3)" in sentence(capsys)
    assert run("fresh", "--cache", "off", "--crops", "0") == 0


def test_the_teacher_never_touches_the_student(run: Any, tmp_path: Path) -> None:
    """With both lambdas 0 the student's weights are those of --teacher off, to the bit, whatever the teacher is."""
    zero = ("--lambda-feat", "0", "--lambda-logit", "0")
    assert run("off", "--teacher", "off") == run("on", *zero) == run("separate", "--teacher", "separate", *zero) == 0
    assert run("taught") == 0
    off = weights(tmp_path / "off")
    assert_same(weights(tmp_path / "on"), off)
    assert_same(weights(tmp_path / "separate"), off)
    assert not torch.equal(weights(tmp_path / "taught")["head.weight"], off["head.weight"]), (
        "distillation does touch it"
    )
    teachers = [weights(tmp_path / name, "teacher.pth") for name in ("on", "separate")]
    assert teachers[0]["cross.0.to_out.weight"].any(), "the teacher has learnt from its own loss"
    assert "var.head.weight" in teachers[1] and not torch.equal(teachers[1]["var.head.weight"], off["head.weight"])


def test_every_teacher_starts_as_the_student(run: Any, tmp_path: Path) -> None:
    for teacher in ("on", "separate"):
        assert run(teacher, "--teacher", teacher, "--steps", "1") == 0
        first = records(tmp_path / teacher)[0]
        assert first["train/ce_teacher"] == first["train/ce_student"]
        assert first["train/kl"] == pytest.approx(0, abs=1e-6) and first["train/feat"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", ["on", "separate"])
def test_the_teacher_has_a_learning_rate_of_its_own(run: Any, tmp_path: Path, kind: str) -> None:
    """A step of AdamW at rate r moves a weight by r at first: W_O starts at zero and shows it. The rest keeps the full rate."""
    assert run("slow", "--steps", "1", "--teacher", kind) == 0  # its default is a tenth
    assert run("fast", "--steps", "1", "--teacher", kind, "--teacher-lr", "1") == 0
    slow, fast = (weights(tmp_path / name, "teacher.pth") for name in ("slow", "fast"))
    moved = "cross.0.to_out.weight" if kind == "on" else "aliases.cross.0.to_out.weight"
    assert fast[moved].any() and torch.allclose(10 * slow[moved], fast[moved], rtol=1e-3)
    assert_same(weights(tmp_path / "slow"), weights(tmp_path / "fast"))
    if kind == "separate":
        assert torch.equal(slow["var.head.weight"], fast["var.head.weight"])


def test_the_running_mean_is_that_of_what_was_trained_on(run: Any, tmp_path: Path) -> None:
    """After one step it is the batch's mean of E_a, micro-batches or not; every step counts once."""
    assert run("one", "--steps", "1") == run("two", "--steps", "1", "--accumulate", "2") == run("six") == 0
    one, two, six = (weights(tmp_path / name, "teacher.pth") for name in ("one", "two", "six"))
    assert one["embed.mean_TC"].any() and torch.allclose(one["embed.mean_TC"], two["embed.mean_TC"], atol=1e-5)
    assert [int(teacher["embed.batches"]) for teacher in (one, two, six)] == [1, 1, 6]


def test_options_that_must_not_change_the_result(run: Any, tmp_path: Path) -> None:
    assert run("plain") == run("again", "--grad-checkpoint") == run("grouped", "--attention", "per-scale") == 0
    assert_same(weights(tmp_path / "again"), weights(tmp_path / "plain"))
    losses = [[r["train/loss"] for r in records(tmp_path / name) if "train/loss" in r] for name in ("plain", "grouped")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    "options", [("--precision", "bf16"), ("--precision", "fp16"), ("--mask", "privileged", "--hflip", "--cache", "off")]
)
def test_variants_train_and_resume(run: Any, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert run("whole", *options) == 0
    assert run("parts", *options, "--save-every", "1") == 0
    sorted((tmp_path / "parts" / "checkpoints").glob("step-*"))[-1].unlink()  # as if killed in the last step
    assert run("parts", *options, "--save-every", "1") == 0
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_accumulation_sums_to_the_same_gradient(run: Any, tmp_path: Path) -> None:
    """Of a student without label drop two micro-batches of two are one batch of four, up to rounding."""
    options = ("--steps", "1", "--teacher", "off")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refocus_ext.distill.command.build_networks", without_drop)
        assert run("one", *options) == run("two", *options, "--accumulate", "2") == 0
    one, two = (records(tmp_path / name)[0] for name in ("one", "two"))
    assert one["train/loss"] == pytest.approx(two["train/loss"], rel=1e-5)
    assert one["train/grad_norm"] == pytest.approx(two["train/grad_norm"], rel=1e-4)


def without_drop(*args: Any) -> Any:
    networks = build_networks(*args)
    networks.var.cond_drop_rate = 0.0
    for block in inside(networks.var).blocks:
        block.drop_path = torch.nn.Identity()
    return networks


# ------------------------------------------------------------------------------------------------ interruption


def test_interruption_saves_and_resume_ends_in_the_same_bits(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("whole", "--save-every", "0") == 0
    real, steps = DistillTraining.train_step, iter(range(100))

    def train_step(self: DistillTraining, *args: Any) -> Any:
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(DistillTraining, "train_step", train_step)
        assert run("parts", "--save-every", "0") == 143
    assert "saved step 3; rerun the same command to resume" in capsys.readouterr().out
    assert (tmp_path / "parts" / "var_d2.pth").is_file(), "a student at every checkpoint"
    assert run("parts", "--save-every", "0") == 0
    assert "resuming after step 3" in capsys.readouterr().out
    for name in ("var_d2.pth", "teacher.pth"):
        assert_same(weights(tmp_path / "whole", name), weights(tmp_path / "parts", name))
    assert run("parts", "--save-every", "0") == 0
    assert "already trained for 6 steps" in capsys.readouterr().out


def test_an_extended_run_is_one_run_to_the_bit(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted after its extension; then resumed with other words for the same classes and another attention."""
    for name in ("whole", "parts"):
        assert run(name) == 0
    assert run("whole", "--steps", "9") == 2 and "--extend to train that run for more steps" in capsys.readouterr().err
    assert run("whole", "--steps", "9", "--extend") == 0
    real, steps = DistillTraining.train_step, iter(range(100))

    def train_step(self: DistillTraining, *args: Any) -> Any:
        if next(steps) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(DistillTraining, "train_step", train_step)
        assert run("parts", "--steps", "9", "--extend") == 138
    capsys.readouterr()
    assert run("parts", "--steps", "9", "--num-classes", "2", "--workers", "1", "--grad-checkpoint") == 0
    said = capsys.readouterr().out
    assert "num_classes = 2 (was 0)" in said and "workers = 1 (was 0)" in said and "grad_checkpoint = True" in said
    for name in ("var_d2.pth", "teacher.pth"):
        assert_same(weights(tmp_path / "whole", name), weights(tmp_path / "parts", name))
    schedule = [{"from_step": 0, "steps": 6}, {"from_step": 6, "steps": 9}]
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["schedule"] == schedule


def test_a_cache_of_another_device_is_taken(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made in tf32 on a GPU, and resumed on a CPU."""
    cache = tmp_path / "tokens"
    assert run("run", "--cache", str(cache), "--save-every", "2") == 0
    index = json.loads((cache / "index.json").read_text())
    index["identity"]["precision"] = "tf32"
    (cache / "index.json").write_text(json.dumps(index))
    assert run("run", "--cache", str(cache)) == 0
    shard = next(path for path in cache.iterdir() if path.name != "index.json")
    shard.unlink()  # what is missing can be made in fp32 only
    capsys.readouterr()
    assert run("run", "--cache", str(cache)) == 2
    assert "tf32 is CUDA's" in capsys.readouterr().err


def test_out_of_memory_names_what_saves_memory(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: DistillTraining, *args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(DistillTraining, "_backward", full)
    assert run("run") == 1
    assert "--accumulate 2 makes that" in (said := capsys.readouterr().err) and "--grad-checkpoint saves more" in said
    assert run("one", "--batch-size", "1") == 1
    assert "--grad-checkpoint keeps fewer activations" in (said := capsys.readouterr().err)
    assert said.strip().endswith("--grad-checkpoint")
    assert run("one", "--batch-size", "1", "--grad-checkpoint") == 1
    assert "It cannot be smaller" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--batch-size", "99"), "larger than the data set"),
        (("--extend",), "holds none to continue"),
        (("--init", "nowhere.pth"), "--init nowhere.pth is not a file"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], text: str
) -> None:
    assert run("run", "--dry-run", *words) == 2 and text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_a_full_disk(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    for words, text in (
        (("--cache", str(tmp_path / "t")), "but the token cache needs"),
        (("--cache", "off"), "GiB free, but"),
    ):
        assert run("run", "--dry-run", *words) == 2 and text in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_passed_over(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run") == 0
    whole = weights(tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    with open(newest, "r+b") as file:
        file.seek(2000)
        file.write(b"\x7f")
    assert run("run") == 0
    out = capsys.readouterr().out
    assert (
        f"{newest} is damaged" in out
        and "Falling back to the previous checkpoint." in out
        and "resuming after step 4" in out
    )
    assert_same(weights(tmp_path / "run"), whole)


def test_non_finite_steps_change_nothing_and_stop(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = DistillObjective.forward, iter(range(1000))

    def forward(self: DistillObjective, *args: Any) -> Any:
        loss, terms = real(self, *args)
        return (loss * float("nan") if next(calls) >= 2 else loss), terms

    monkeypatch.setattr(DistillObjective, "forward", forward)
    assert run("run", "--steps", "20", "--save-every", "1", "--keep", "9") == 1
    captured = capsys.readouterr()
    assert "step 3 skipped: its loss or gradient is not finite (images " in captured.out
    assert "not finite in 5 steps in a row; the last batch was " in captured.err and ".jpg" in captured.err
    paths = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    before, after = (load_checkpoint(paths[i]) for i in (1, -1))
    assert_same(before["var"], after["var"])
    assert_same(before["teacher"], after["teacher"])


def test_a_full_disk_leaves_the_checkpoint_before(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = torch.save

    def save(state: Any, path: Any) -> None:
        if isinstance(state, dict) and state.get("step") == 4:
            raise OSError(28, "No space left on device")
        real(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        assert run("run") == 1
    assert "the checkpoint of step 4 could not be written" in capsys.readouterr().err
    trained = weights(tmp_path / "run")  # the student, much smaller, is there
    assert trained["head.weight"].any() and (tmp_path / "run" / "teacher.pth").is_file()
    step_2 = load_checkpoint(next((tmp_path / "run" / "checkpoints").glob("step-00000002-*")))
    assert not torch.equal(trained["head.weight"], step_2["var"]["head.weight"]), "and it is step 4's"
    assert run("run") == 0 and "resuming after step 2" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ before it starts


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.startswith("refocus: ")
    return err


def test_without_a_tokenizer_it_says_which_command_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", "--tokenizer", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert "`bash run.sh tokenizer`" in sentence(capsys) and not (tmp_path / "run").exists()


def refusals() -> Iterator[Any]:
    yield pytest.param(("--crops", "0", "--cache", "somewhere"), "--cache off", id="fresh crops cannot be cached")
    yield pytest.param(("--teacher-blocks", "3"), "--teacher-blocks 3 is more than the 2 blocks", id="blocks")
    yield pytest.param(("--batch-size", "13"), "larger than the data set of 12 images", id="batch")
    yield pytest.param(("--num-classes", "1"), "more than --num-classes 1", id="classes")
    yield pytest.param(("--accumulate", "3"), "--accumulate 3 does not divide", id="accumulate")
    yield pytest.param(("--val-images", "1"), "at least two images", id="validation")
    yield pytest.param(("--alias-scales", "9"), "--alias-scales", id="alias scales")
    yield pytest.param(("--init", "nowhere.pth"), "--init nowhere.pth is not a file", id="init")
    yield pytest.param(("--tokens-precision", "tf32", "--device", "cpu"), "tf32", id="tf32 on a CPU")


@pytest.mark.parametrize(("options", "text"), list(refusals()))
def test_bad_options_are_one_sentence(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], text: str
) -> None:
    assert run("run", *options) == 2
    assert text in sentence(capsys) and not (tmp_path / "run").exists()


def test_preflight_lets_the_run_pass_and_refuses_another(
    run: Any, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", *TINY, "--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")]
    assert main(["--preflight", "2", *words]) == 0
    assert capsys.readouterr() == ("", "") and not (tmp_path / "out").exists()
    assert run("out", "--steps", "2", "--picture-every", "2", "--cache", str(tmp_path / "cache")) == 0
    capsys.readouterr()
    cached = ["--preflight", "2", *words, "--cache", str(tmp_path / "cache")]
    assert main([*cached, "--steps", "2", "--picture-every", "2"]) == 0
    for options, sentence in (
        (["--steps", "3"], "holds a run with steps = 2, this one has 3"),
        (["--steps", "2", "--crops", "3"], "was made with crops = 2 (this run wants 3)"),
        (["--steps", "2", "--accumulate", "4"], "does not divide over 2 processes and 4 micro-batches"),
    ):
        assert main([*cached, *options]) == 2
        assert sentence in capsys.readouterr().err
    assert main([*cached, "--steps", "3", "--resume", "never"]) == 0


def test_memory_and_disk_are_checked_first(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DeviceKind, "free_memory", lambda self, device: 1 << 20)
        assert run("run") == 2
    assert "choose a smaller --depth" in sentence(capsys) and not (tmp_path / "run").exists()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    assert run("run") == 2
    assert "GiB free, but checkpoints and weights of this run need" in sentence(capsys)


def test_a_tokenizer_without_alias_tokens_serves_no_teacher(
    tokenizer: Path, tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(tokenizer.parent / "data")
    assert main(["tokenizer", *TOKENIZER, "--alias", "off", "--data", data, "--out", str(tmp_path / "plain")]) == 0
    capsys.readouterr()
    assert run("run", "--tokenizer", str(tmp_path / "plain")) == 2
    assert "--teacher off" in sentence(capsys)
    assert run("run", "--tokenizer", str(tmp_path / "plain"), "--teacher", "off") == 0


def test_init_starts_from_published_weights_in_both_layouts(
    run: Any, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = load_upstream().build_vae(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2))
    published = load_upstream().build_var(vae, depth=2, num_classes=2)
    torch.save(published.state_dict(), tmp_path / "plain.pth")
    torch.save({"trainer": {"var_wo_ddp": published.state_dict()}}, tmp_path / "nested.pth")
    for name in ("plain", "nested"):
        assert run(name, "--init", str(tmp_path / f"{name}.pth"), "--steps", "1", "--lr", "1e-9") == 0
        for key, value in weights(tmp_path / name).items():
            assert torch.allclose(value, published.state_dict()[key], atol=1e-6), key
    capsys.readouterr()
    assert run("other", "--init", str(tmp_path / "plain.pth"), "--depth", "1", "--teacher-blocks", "1") == 2
    assert "does not fit this student" in sentence(capsys)


def test_dry_run_counts_and_leaves_nothing(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "student: VAR-d2" in out and "GFLOP per image" in out and not (tmp_path / "run").exists()


def test_another_tokenizer_is_another_run(
    run: Any, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run") == 0
    data = str(tokenizer.parent / "data")
    other = ("--data", data, "--out", str(tmp_path / "tok"), "--seed", "3")
    assert main(["tokenizer", *TOKENIZER, *other]) == 0
    capsys.readouterr()
    assert run("run", "--tokenizer", str(tmp_path / "tok")) == 2
    assert "holds a run with tokenizer = " in sentence(capsys)
