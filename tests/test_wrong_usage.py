"""What a newcomer mistypes, and files that are not what they seem: each command ends with one sentence that names the value and
the way out, before any work starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import run_main
from students import write_run

RUN = "runs/distill-d2"
# What is typed, and words that the sentence must have: the value, and what to do.
TABLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("tokeniser", ("'tokeniser'", "did you mean 'tokenizer'?")),
    ("tokenizer --step 5", ("'--step'", "did you mean --steps?")),
    ("tokenizer --gpus 8", ("'--gpus'", "NPROC=8")),
    ("tokenizer --steps", ("--steps needs a value",)),
    ("tokenizer --steps 0", ("--steps: 0 is not greater than 0",)),
    ("tokenizer --steps many", ("--steps: 'many' is not a whole number",)),
    ("tokenizer --lr nan", ("--lr: nan",)),
    ("tokenizer --lr fast", ("--lr: 'fast' is not a number",)),
    ("tokenizer --preset big", ("'big'", "one of demo,")),
    ("tokenizer --blur disc", ("'disc'", "did you mean disk?")),
    ("tokenizer photos", ("'photos'", "did you mean --data photos?")),
    ("tokenizer --data nowhere", ("nowhere is not a folder", "give a folder")),
    ("tokenizer --data empty", ("empty", "train/CLASS/")),
    ("tokenizer --data photos", ("photos has no val/", "--val-share 0.1 --preset demo, which suits a few pictures")),
    ("tokenizer --data photos --val-share 2", ("--val-share: 2", "less than 1")),
    ("tokenizer --data photos --val-share 0.3", ("--batch-size 256", "choose at most 2", "--preset demo")),
    ("tokenizer --data letter", ("letter", "did you mean letters")),
    ("tokenizer --data letters:empty", ("empty has no fonts", ".ttf")),
    ("tokenizer --image-size 100", ("100", "use 96 or 112")),
    ("tokenizer --patch-nums 4,3,2,1", ("4,3,2,1", "must rise and end at")),
    ("tokenizer --patch-nums 1,2,x", ("'1,2,x' is not a list of whole numbers",)),
    ("tokenizer --focus-states 9", ("9 focus states", "at most 3")),
    ("tokenizer --codebook-size 1", ("--codebook-size: 1 is less than 2",)),
    ("tokenizer --batch-size 5 --accumulate 2", ("--accumulate 2 does not divide --batch-size 5",)),
    ("tokenizer --device gpu", ("--device gpu is not available", "use cpu")),
    ("tokenizer --out a-file", ("--out a-file is a file", "choose a folder")),
    ("tokenizer --init text.pth", ("text.pth is not a weights file", "copy it again")),
    ("tokenizer --init strange.pth", ("strange.pth holds no VQVAE", "give a file of VAR's own VQVAE")),
    ("tokenizer --lpips 1 --lpips-weights gone.pth", ("gone.pth is not a file", "--lpips-weights FILE", "--lpips 0")),
    ("tokenizer --resume maybe", ("--resume maybe", "auto, never, or")),
    ("tokens", ("runs/tokenizer does not exist", "`bash run.sh tokenizer`")),
    (f"tokens --tokenizer {RUN}", ("is not the configuration of a tokenizer run", "give another")),
    ("distill", ("runs/tokenizer does not exist", "`bash run.sh tokenizer`, which comes first")),
    ("distill --depth 20.5", ("--depth: '20.5' is not a whole number",)),
    ("distill --tokenizer vae.pth --data photos", ("4 token maps", "--patch-nums")),
    ("distill --teacher frozen", ("needs --teacher-from RUN",)),
    ("distill --teacher off --teacher-aliases constant", ("--teacher is off", "omit it")),
    ("sample --student nowhere", ("nowhere does not exist", "`bash run.sh distill`")),
    (f"sample --student {RUN} --classes zebra", ("'zebra'", "the names are 'tench'")),
    (f"sample --student {RUN} --classes 99", ("class 99 is out of range", "0 to 4")),
    (f"sample --student {RUN} --cfg -1", ("--cfg: -1 is less than 0",)),
    (f"sample --student {RUN} --compare {RUN}", ("--compare needs 2 values",)),
    (f"sample --student {RUN} --edit broken.jpg --mask 0,0,0.5,0.5", ("broken.jpg is not an image", "another")),
    (f"sample --student {RUN} --edit tiny.png", ("--edit needs --mask",)),
    (f"sample --student {RUN} --edit tiny.png --mask 0.5,0.5,0.2,0.2", ("0.5,0.5,0.2,0.2", "x0 < x1")),
    (f"sample --student {RUN} --out x.txt", ("--out x.txt is a picture", ".png")),
    ("eval --samples text.npz --reference other.npz", ("text.npz is not an npz file", "give another")),
    ("export", ("export needs --run",)),
    (f"export --run {RUN} --to a-file", ("--to: a-file is a file", "choose a folder")),
    ("verify empty", ("empty", "holds no VAR weights")),
    (f"notebook --weights {RUN}", ("var_d2.pth", "num_classes=5")),
    ("pull wrongname --to x", ("wrongname", "OWNER/NAME")),
    ("pyramid broken.jpg", ("broken.jpg is not an image", "give another")),
    ("pyramid tiny.png --chart zone", ("'zone'", "zone-plate")),
    ("aliasing --tokenizer nowhere", ("nowhere is neither", "give an existing one")),
    ("legibility --samples other.npz", ("other.npz holds no images", "sample --npz")),
    ("ablate --rows ful", ("'ful'", "rows are baseline")),
    ("ablate --seeds 0,a", ("--seeds: '0,a' is not a list of whole numbers",)),
    ("bench --section everything", ("'everything'", "one of all")),
    ("status nowhere", ("nowhere is no folder", "give a run folder")),
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's folder: a student, four photographs, and files that are not what their names say."""
    folder = tmp_path_factory.mktemp("desk")
    write_run(folder / RUN)
    (folder / "empty").mkdir()
    (folder / "photos" / "cats").mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (300, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / "cats" / f"{number}.png")
    Image.new("RGB", (10, 10)).save(folder / "tiny.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "text.npz").write_text("hello")
    np.savez(folder / "other.npz", a=np.zeros(3))
    (folder / "text.pth").write_text("hello")
    torch.save({"a": torch.zeros(3)}, folder / "strange.pth")
    (folder / "vae.pth").write_bytes((folder / RUN / "vae.pth").read_bytes())
    (folder / "a-file").write_text("x")
    return folder


@pytest.fixture(autouse=True)
def _at_the_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)


@pytest.mark.parametrize(("typed", "words"), TABLE, ids=[typed for typed, _ in TABLE])
def test_one_sentence_and_nothing_begun(
    typed: str, words: tuple[str, ...], desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(str(path) for path in desk.rglob("*"))
    assert run_main(*typed.split()) == 2
    said = capsys.readouterr().err
    sentence, *more = said.strip().splitlines()
    assert sentence.startswith("refocus: ") and "Traceback" not in said
    assert all(line.endswith("lists the options.") for line in more)
    assert not [word for word in words if word not in sentence], sentence
    assert sorted(str(path) for path in desk.rglob("*")) == before
