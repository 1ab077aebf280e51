"""`eval --tokenizer`: a tiny run is trained once, then measured; and every way in which a run folder can be wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_vae, write_images
from runs import TINY, TRAINED_WITH, parsed
from torch import Tensor, nn

from patches import Focus, Upstream, load_upstream
from refocus_ext.commands import main as command_line
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.evaluation import command, instruments, tokenizer_report
from refocus_ext.evaluation import tokenizer as evaluate_tokenizer
from refocus_ext.evaluation.frechet import FeatureStatistics, frechet_distance
from refocus_ext.evaluation.inception import to_uint8
from refocus_ext.evaluation.instruments import Instruments, ssim
from refocus_ext.evaluation.options import EvalOptions
from refocus_ext.evaluation.tokenizer import Evaluation, main
from refocus_ext.images.crops import Crops
from refocus_ext.images.sources.folder import image_folder
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.storage import results
from refocus_ext.tokenizer import prefixes
from refocus_ext.tokens.trained_tokenizer import Tokenizer, load_tokenizer
from refocus_ext.vector_quantization import codebook_use


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 steps, and the 14 images it was trained and is measured on, in one folder."""
    folder = tmp_path_factory.mktemp("trained")
    for split, count in (("train", 4), ("val", 7)):
        for number, name in enumerate(("cat", "dog")):
            write_images(folder / "data" / split / name, count, seed=10 * number + count)
    assert command_line(["tokenizer", *TINY, "--data", str(folder / "data"), "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def val_crops(trained: Path) -> Tensor:
    crops = Crops(image_folder(str(trained / "data"), "val"), 32, random=False)
    return torch.stack([crops[i][0] for i in range(len(crops))])


def evaluate(run: Path, tmp_path: Path, **options: Any) -> dict[str, Any]:
    """The command's numbers."""
    file = tmp_path / "numbers.json"
    assert main(EvalOptions(tokenizer=str(run), json=str(file), device="cpu", workers=0, **options)) == 0
    return json.loads(file.read_text())


class Brightness(nn.Module):
    """Stands in for Inception: the mean colour of each quarter of the image."""

    standard = False

    def forward(self, image: Tensor) -> Tensor:
        assert image.dtype == torch.uint8
        return nn.functional.adaptive_avg_pool2d(image.float(), 2).flatten(1)[:, :5]


class Distance(nn.Module):
    """Stands in for LPIPS."""

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        return (image - target).abs().flatten(1).mean(1)


# ------------------------------------------------------------------------------------------------ loading a run


def test_a_loaded_tokenizer_is_the_trained_one_frozen(trained: Path) -> None:
    tokenizer = load_tokenizer(trained / "run")
    assert isinstance(tokenizer, Tokenizer) and tokenizer.path == trained / "run"
    assert tokenizer.pyramid == FocusPyramid(image_size=32, states=2, rho_max=3.0)
    assert not tokenizer.vae.training and not any(p.requires_grad for p in tokenizer.vae.parameters())
    saved = torch.load(trained / "run" / "vae.pth", weights_only=True)
    state = tokenizer.vae.state_dict()
    assert list(state) == list(saved) and all(torch.equal(state[name], saved[name]) for name in saved)
    x = val_crops(trained)[:2]
    fresh = load_upstream().build_vae(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2))
    fresh.load_state_dict(saved)
    Focus(tokenizer.pyramid).apply(fresh)
    pairs = zip(tokenizer.vae.img_to_idxBl(x), fresh.img_to_idxBl(x), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def refusal(run: Path) -> str:
    with pytest.raises(UsageError) as error:
        load_tokenizer(run)
    assert str(run) in str(error.value) and str(error.value).endswith(".")
    return str(error.value)


def edit_config(run: Path, **changes: Any) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | changes))


def test_not_a_run(tmp_path: Path, run: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "is not a folder" in refusal(run / "vae.pth")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(tmp_path / "empty")
    edit_config(run, command="distill")
    assert "not the configuration of a tokenizer run" in refusal(run)
    for text in ("{", "[]", '{"command": "tokenizer"}'):
        (run / "config.json").write_text(text)
        assert "not the configuration of a tokenizer run" in refusal(run)


def test_an_unfinished_run(run: Path) -> None:
    (run / "vae.pth").unlink()
    assert "no vae.pth yet: its training is not finished" in refusal(run)


def test_weights_of_another_run(run: Path) -> None:
    """Same geometry, other weights: only the checksum can tell."""
    state = torch.load(run / "vae.pth", weights_only=True)
    state["encoder.conv_in.bias"] += 1
    torch.save(state, run / "vae.pth")
    edit_config(run, weights={"vae.pth": 64 * "0"})
    assert "not the ones its pyramid was trained with" in refusal(run)
    edit_config(run, weights={})
    load_tokenizer(run)


def test_weights_of_another_geometry(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    edit_config(run, weights={}, options=config["options"] | {"codebook_size": 32})
    assert "does not fit the geometry" in refusal(run)
    edit_config(run, options=config["options"] | {"patch_nums": [1, 2, 4]})
    assert "describes a tokenizer that cannot be built" in refusal(run)
    edit_config(run, options=config["options"], pyramid=config["pyramid"] | {"states": 9})
    assert "describes a tokenizer that cannot be built" in refusal(run)


def test_weights_that_are_none(run: Path) -> None:
    (run / "vae.pth").write_bytes(b"nothing")
    edit_config(run, weights={})
    assert "is not a file of network weights" in refusal(run)


# ------------------------------------------------------------------------------------------------ the command


def test_numbers_are_those_of_the_trainings_own_validation(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = evaluate(trained / "run", tmp_path, batch_size=4)
    x = val_crops(trained)
    expected = prefixes.validate(load_tokenizer(trained / "run").vae, [x])
    assert numbers["images"] == 14 and numbers["data"] == f"{trained / 'data'}/val"
    assert [row["state"] for row in numbers["states"]] == [1, 2]
    assert [row["tokens"] for row in numbers["states"]] == [1, 5]
    assert [row["focus"]["psnr"] for row in numbers["states"]] == pytest.approx(expected.psnr_focus_K, abs=1e-4)
    assert [row["sharp"]["psnr"] for row in numbers["states"]] == pytest.approx(expected.psnr_sharp_K, abs=1e-4)
    assert [row["usage"] for row in numbers["scales"]] == pytest.approx(expected.usage_S)
    assert [row["perplexity"] for row in numbers["scales"]] == pytest.approx(expected.perplexity_S, rel=1e-5)
    assert [row["tokens"] for row in numbers["scales"]] == [14, 56]
    last = numbers["states"][-1]
    assert last["focus"] == last["sharp"] == numbers["reconstruction"]
    printed = capsys.readouterr().out
    assert "upstream: " in printed and "on 14 images of" in printed
    assert f"PSNR {last['sharp']['psnr']:.2f} dB, SSIM {last['sharp']['ssim']:.4f}\n" in printed


def test_an_interrupted_run_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(run, tmp_path, images=1)
    assert "is not finished" not in capsys.readouterr().out
    for path in (run / "checkpoints").glob("step-00000006-*"):
        path.rename(path.with_name(path.name.replace("step-00000006", "step-00000004")))
    evaluate(run, tmp_path, images=1)
    out = capsys.readouterr().out
    assert f"note: training of {run} is not finished: these are its weights after 4 of 6 steps" in out


def test_what_cannot_be_measured_is_named_with_the_way_to_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = evaluate(trained / "run", tmp_path, images=1)
    assert set(numbers["reconstruction"]) == {"psnr", "ssim"} and numbers["rfid"] is None
    missing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not measured: ")]
    assert any("LPIPS, because" in line and "--lpips-weights FILE" in line for line in missing)
    assert any("rFID, because" in line and "--inception-weights FILE" in line for line in missing)
    assert {"lpips", "rfid"} <= set(numbers["not_measured"])


def test_a_named_file_that_is_missing_is_an_error(trained: Path) -> None:
    options = EvalOptions(tokenizer=str(trained / "run"), device="cpu", workers=0)
    for named in (
        options.replace(lpips_weights="nowhere.pth"),
        options.replace(inception_weights="nowhere.pth"),
    ):
        with pytest.raises(UsageError, match=r"nowhere\.pth is not a file"):
            main(named)


def test_usage_errors(trained: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="eval needs --tokenizer RUN"):
        main(EvalOptions(tokenizer=""))
    with pytest.raises(UsageError, match="nowhere does not exist; a tokenizer is the run folder of"):
        main(EvalOptions(tokenizer=str(tmp_path / "nowhere")))
    with pytest.raises(UsageError, match="has no val/ folder"):
        main(EvalOptions(tokenizer=str(run), data=str(run), device="cpu"))


def test_json_is_looked_at_first_and_may_still_fail(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    options = EvalOptions(tokenizer=str(run), images=2, workers=0, device="cpu")
    (tmp_path / "file").write_text("")
    for name in (tmp_path, tmp_path / "file" / "n.json"):
        with pytest.raises(UsageError, match=r"--json: .*(is a folder; give|cannot be a folder)"):
            command.main(options.replace(json=str(name)))
    assert not capsys.readouterr().out
    monkeypatch.setattr(results, "save_json", full)
    with pytest.raises(RunFailed, match=r"--json: .*n\.json could not be written \(No space left on device\)"):
        command.main(options.replace(json=str(tmp_path / "n.json")))


def test_with_every_network(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruments, "load_lpips", lambda weights, device: Distance())
    monkeypatch.setattr(instruments, "load_inception", lambda weights, device: Brightness())
    numbers = evaluate(trained / "run", tmp_path, batch_size=3)
    x, vae = val_crops(trained), load_tokenizer(trained / "run").vae
    decoded = vae.img_to_reconstructed_img(x, last_one=True)
    assert numbers["reconstruction"]["lpips"] == pytest.approx((decoded - x).abs().mean().item(), rel=1e-4)
    real, fake = FeatureStatistics(), FeatureStatistics()
    real.update(Brightness()(to_uint8(x)))
    fake.update(Brightness()(to_uint8(decoded)))
    assert numbers["rfid"] == pytest.approx(frechet_distance(real, fake), rel=1e-3) and numbers["rfid"] > 0
    assert not {"lpips", "rfid"} & set(numbers["not_measured"])
    assert any("14 here, 50000" in note for note in numbers["notes"]) and any(
        "published" in n for n in numbers["notes"]
    )
    one = evaluate(trained / "run", tmp_path, images=1)
    assert one["rfid"] is None and "at least 2 images" in one["not_measured"]["rfid"]


def test_the_crop_may_be_the_whole_shorter_side_and_is_stated(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another view of the same images: other numbers, and the line with them says which view it was."""
    own, whole = (evaluate(trained / "run", tmp_path, crop_scale=scale) for scale in (None, 1.0))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("all tokens against x")]
    assert "centre crops of 32 px of images resized to 36 px:" in lines[0]
    assert "centre crops of 32 px of images resized to 32 px:" in lines[1]
    assert own["reconstruction"]["psnr"] != whole["reconstruction"]["psnr"] and "36 px" in own["view"]


def test_twice_the_same_and_independent_of_batches_and_loader(trained: Path, tmp_path: Path) -> None:
    first, again, other = (evaluate(trained / "run", tmp_path, batch_size=size) for size in (14, 14, 5))
    assert first == again
    for a, b in zip(first["states"], other["states"], strict=True):
        assert a["sharp"] == pytest.approx(b["sharp"], rel=1e-4) and a["focus"] == pytest.approx(b["focus"], rel=1e-4)


def test_without_data_the_demo_photographs(trained: Path) -> None:
    tokenizer = load_tokenizer(trained / "run")
    trained_with = dataclasses.replace(tokenizer.trained_with, data="")
    images, source = evaluate_tokenizer.val_images(dataclasses.replace(tokenizer, trained_with=trained_with), "")
    assert "astronaut" in images.classes and "demo photographs" in source


def test_options_parse_and_their_help_is_complete() -> None:
    options = parsed("eval", "--tokenizer", "r", "--images", "9", "--json", "f")
    assert options == EvalOptions(tokenizer="r", images=9, json="f")
    with pytest.raises(SystemExit):
        parsed("eval", "--images", "0")


# ------------------------------------------------------------------------------------------------ the measures


def tokenizer_of(vae: Any, pyramid: FocusPyramid) -> Tokenizer:
    Focus(pyramid).apply(vae.eval())
    return Tokenizer(vae, None, pyramid, {}, TRAINED_WITH, Path("somewhere"))


def test_without_blur_both_columns_are_the_same(upstream: Upstream, images: Tensor) -> None:
    pyramid = FocusPyramid(image_size=64, states=3, blur="none")
    tokenizer = tokenizer_of(small_vae(upstream), pyramid)
    evaluation = Evaluation(tokenizer, Instruments({"psnr": prefixes.psnr}))
    evaluation.update(images)
    report = evaluation.report()
    assert len(report.states) == 3 and all(row.focus == row.sharp and row.radius == 0 for row in report.states)
    expected = prefixes.validate(tokenizer.vae, [images])
    assert [row.sharp["psnr"] for row in report.states] == pytest.approx(expected.psnr_sharp_K)
    assert [row.usage for row in report.scales] == pytest.approx(expected.usage_S)


def test_a_state_that_no_scale_serves_is_left_out(upstream: Upstream, pyramid: FocusPyramid, images: Tensor) -> None:
    evaluation = Evaluation(
        tokenizer_of(small_vae(upstream, patch_nums=(1, 4)), pyramid), Instruments({"psnr": prefixes.psnr})
    )
    evaluation.update(images)
    report = evaluation.report()
    assert [row.state for row in report.states] == [1, 3] and [row.state for row in report.scales] == [1, 3]


def test_an_empty_evaluation_has_no_report(upstream: Upstream, pyramid: FocusPyramid) -> None:
    with pytest.raises(ValueError, match="no images"):
        Evaluation(tokenizer_of(small_vae(upstream), pyramid), Instruments({"psnr": prefixes.psnr})).report()


class Halves:
    """An alias coder whose tokens are the views and whose reconstruction is half of them: it explains about 3/4."""

    def tokens(self, alias_K: Sequence[Tensor]) -> list[Tensor]:
        return list(alias_K)

    def reconstruct(self, idx_K: Sequence[Tensor]) -> list[Tensor]:
        return [idx / 2 for idx in idx_K]


def test_explained_variance_of_an_alias_tokenizer(upstream: Upstream, pyramid: FocusPyramid, images: Tensor) -> None:
    rough = (images + 0.5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))).clamp(-1, 1)
    tools = Instruments({"psnr": prefixes.psnr}, alias=Halves())
    evaluation = Evaluation(tokenizer_of(small_vae(upstream), pyramid), tools)
    for x in rough.split(2):
        evaluation.update(x)
    explained = evaluation.report().alias_explained
    assert explained is not None and explained == pytest.approx([0.75, 0.75], abs=0.02)
    assert any("state 1 7" in line for line in tokenizer_report.table(evaluation.report()))


def test_ssim_by_hand() -> None:
    """Of constants only the luminance term is left, and it is that of values in [0,1]."""
    black, grey = torch.full((2, 3, 32, 32), 0.0), torch.full((2, 3, 32, 32), 0.5)
    expected = (2 * 0.5 * 0.75 + 1e-4) / (0.5**2 + 0.75**2 + 1e-4)
    assert ssim(grey, black).tolist() == pytest.approx([expected, expected], rel=1e-3)  # fp32 variances of a constant
    noise = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ssim(noise, noise).tolist() == pytest.approx([1, 1])
    assert (ssim(noise, -noise) < 0).all(), "structure turned around"
    assert torch.equal(ssim(3 * noise, noise.clamp(-1, 1)), ssim((3 * noise).clamp(-1, 1), noise))


def test_usage_and_perplexity_by_hand() -> None:
    usage, perplexity = codebook_use(torch.tensor([2, 1, 1, 0, 0, 0, 0, 0]))
    assert usage == 37.5
    assert perplexity == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
