"""`eval --samples`: the same numbers streamed, shared out and from folders; what is told; torch-fidelity's own results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from inceptions import load_colours, random_inception
from PIL import Image

from refocus_ext.commands import main
from refocus_ext.engine.distributed import World
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.evaluation import reference, samples
from refocus_ext.evaluation.command import check
from refocus_ext.evaluation.frechet import FeatureStatistics, frechet_distance
from refocus_ext.evaluation.inception import load_inception
from refocus_ext.evaluation.options import EvalOptions
from refocus_ext.evaluation.reference import open_reference
from refocus_ext.evaluation.samples_report import PUBLISHED, SampleReport, table, too_few
from refocus_ext.evaluation.scores import inception_score, precision_recall
from refocus_ext.images.npz import NpzImages, write_npz
from refocus_ext.images.readers import FolderImages, open_samples
from refocus_ext.storage import results

ROOT = Path(__file__).resolve().parents[2]


def pictures(count: int, seed: int = 0, size: int = 24, shift: int = 0) -> np.ndarray:
    """Smooth noise (N,size,size,3), uint8."""
    coarse = np.random.default_rng(seed).integers(0, 200, (count, 6, 6, 3), dtype=np.uint8) + np.uint8(shift)
    return coarse.repeat(size // 6, 1).repeat(size // 6, 2)


def save_npz(path: Path, images: np.ndarray, labels: Any = None) -> Path:
    """As `sample` writes it."""
    labels = np.arange(len(images)) * 7 % 5 if labels is None else labels
    write_npz(path, images, images.shape, labels, {})
    return path


def save_folder(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "load_inception", load_colours)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """50 samples and 40 reference images."""
    samples = save_npz(tmp_path / "samples.npz", pictures(50, shift=20))
    return samples, save_npz(tmp_path / "reference.npz", pictures(40, seed=1))


def numbers(samples: Path, reference: Path, *words: str) -> dict[str, Any]:
    """The command's numbers, from its --json."""
    file = samples.with_name("numbers.json")
    argv = ["eval", "--samples", str(samples), "--reference", str(reference), "--device", "cpu", "--json", str(file)]
    assert main([*argv, *words]) == 0
    return json.loads(file.read_text())


METRICS = ("fid", "sfid", "inception_score", "inception_score_shuffled", "precision", "recall")


def metrics(found: dict[str, Any]) -> list[float]:
    return [found[name] for name in METRICS]


# ------------------------------------------------------------------------------------------------ the numbers


class Fidelity(NamedTuple):
    weights: Path
    samples: Path
    reference: Path

    def theirs(self, fid: bool) -> dict[str, float]:
        """torch-fidelity's own results."""
        import torch_fidelity

        return torch_fidelity.calculate_metrics(
            input1=str(self.samples),
            input2=str(self.reference),
            cuda=False,
            fid=fid,
            isc=True,
            isc_splits=1,
            samples_shuffle=False,
            prc=True,
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(self.weights),
            cache=False,
            verbose=False,
            save_cpu_ram=True,
        )


@pytest.fixture
def fidelity(tmp_path: Path) -> Fidelity:
    """The real architecture with random weights, and two folders of images."""
    state = random_inception()
    state["fc.weight"] *= 30  # else every class is as likely as any
    torch.save(state, tmp_path / "random.pth")
    return Fidelity(
        tmp_path / "random.pth",
        save_folder(tmp_path / "samples", pictures(9, shift=50)),
        save_folder(tmp_path / "reference", pictures(8, seed=1)),
    )


def test_scores_are_those_of_torch_fidelity(fidelity: Fidelity) -> None:
    """Inception Score, precision and recall, from files on; FID's part of it takes longer and is the next test."""
    inception, here = load_inception(str(fidelity.weights)), World(0, 1, torch.device("cpu"))
    folders = (FolderImages(path, None, 1) for path in (fidelity.samples, fidelity.reference))
    ours, reference = (samples.extract(images, inception, 5, here).pool_ND for images in folders)
    theirs = fidelity.theirs(fid=False)
    assert inception_score(inception.class_logits(ours)) == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert theirs["inception_score_mean"] > 1.01
    assert precision_recall(ours, reference) == pytest.approx((theirs["precision"], theirs["recall"]))


@pytest.mark.slow
def test_the_command_gives_the_numbers_of_torch_fidelity(fidelity: Fidelity) -> None:
    """Square roots of 2048 x 2048 matrices, theirs and ours."""
    weights = str(fidelity.weights)
    found = numbers(fidelity.samples, fidelity.reference, "--inception-weights", weights, "--batch-size", "5")
    theirs = fidelity.theirs(fid=True)
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3) and found["fid"] > 1
    assert found["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert (found["precision"], found["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert found["sfid"] > 0 and found["sfid"] != found["fid"]


def test_numbers_are_the_formulas_of_all_features_at_once(colours: None, files: tuple[Path, Path]) -> None:
    found = numbers(*files, "--batch-size", "7")
    sets = [torch.from_numpy(np.load(file)["arr_0"]).permute(0, 3, 1, 2) for file in files]
    ours, theirs = (load_colours("").activations(images) for images in sets)
    for name, a, b in (("fid", ours[0], theirs[0]), ("sfid", ours[1], theirs[1])):
        parts = FeatureStatistics(), FeatureStatistics()
        for part, features in zip(parts, (a, b), strict=True):
            part.update(features)
        assert found[name] == pytest.approx(frechet_distance(*parts), rel=1e-6)
    assert [found["precision"], found["recall"]] == list(precision_recall(ours[0], theirs[0]))
    assert 0 < found["precision"] < 1
    assert (found["images"], found["reference_images"]) == (50, 40)


def test_batches_compression_and_folders_change_nothing(
    colours: None, files: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = metrics(numbers(*files, "--batch-size", "64"))
    arrays = [np.load(file)["arr_0"] for file in files]
    for number, images in enumerate(arrays):
        np.savez_compressed(tmp_path / f"{number}.npz", images)
    folders = [save_folder(tmp_path / f"folder{number}", images) for number, images in enumerate(arrays)]
    assert metrics(numbers(*files, "--batch-size", "3")) == pytest.approx(whole, rel=1e-6)
    assert metrics(numbers(tmp_path / "0.npz", tmp_path / "1.npz")) == pytest.approx(whole, rel=1e-6)
    assert metrics(numbers(folders[0], folders[1], "--workers", "2")) == pytest.approx(whole, rel=1e-6)


TWO = """
import sys
from inceptions import load_colours
from refocus_ext.evaluation import samples
samples.load_inception = load_colours
from refocus_ext.__main__ import leave
from refocus_ext.commands import main
leave(main(sys.argv[1:]))
"""


def test_two_processes_give_the_numbers_of_one(colours: None, files: tuple[Path, Path], tmp_path: Path) -> None:
    """17 batches of 3: a short last one, and one more on the first process than on the second."""
    one = numbers(*files, "--batch-size", "3")
    (tmp_path / "two.py").write_text(TWO)
    out = tmp_path / "two.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "two.py"]
    words = ["eval", "--samples", files[0], "--reference", files[1], "--batch-size", "3", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    argv = [*map(str, launch), *map(str, words), "--json", str(out)]
    result = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("published, ImageNet") == 1, "only rank 0 talks"
    assert metrics(json.loads(out.read_text())) == pytest.approx(metrics(one), rel=1e-9)


# ------------------------------------------------------------------------------------------------ references


def test_stored_statistics_are_taken_and_images_serve_precision_and_recall(
    colours: None, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mu = 0 and sigma = 0 leave |mean|^2 + trace of the samples' own covariance."""
    monkeypatch.setattr(reference, "STATISTICS", {"pool": ("mu", "sigma", 12), "spatial": ("mu_s", "sigma_s", 27)})
    without = numbers(*files)
    assert any("stores no statistics" in note and "40 images" in note for note in without["notes"])
    zeros: dict[str, Any] = {
        "mu": np.zeros(12),
        "sigma": np.zeros((12, 12)),
        "mu_s": np.zeros(27),
        "sigma_s": np.zeros((27, 27)),
    }
    np.savez(tmp_path / "both.npz", arr_0=np.load(files[1])["arr_0"], **zeros)
    found = numbers(files[0], tmp_path / "both.npz")
    images = torch.from_numpy(np.load(files[0])["arr_0"]).permute(0, 3, 1, 2)
    for name, features in zip(("fid", "sfid"), load_colours("").activations(images), strict=True):
        x = features.double()
        assert found[name] == pytest.approx((x.mean(0).square().sum() + x.T.cov().trace()).item(), rel=1e-6)
    assert (found["precision"], found["recall"]) == (without["precision"], without["recall"])
    assert not any("stores no statistics" in note for note in found["notes"])

    np.savez(tmp_path / "fid.npz", mu=zeros["mu"], sigma=zeros["sigma"])
    alone = numbers(files[0], tmp_path / "fid.npz")
    assert alone["fid"] == found["fid"] and alone["sfid"] is alone["precision"] is alone["recall"] is None
    assert "no mu_s and sigma_s" in alone["not_measured"]["sfid"]
    assert "no images" in alone["not_measured"]["recall"] and alone["reference_images"] == 0


def test_a_folder_of_other_sizes_is_brought_to_the_samples(
    colours: None, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = pictures(6, seed=1, size=48)
    folder = save_folder(tmp_path / "large", images)
    Image.fromarray(pictures(1)[0]).save(folder / "right.png")
    found = numbers(files[0], folder)
    assert "6 of 7 images" in " ".join(found["notes"]) and "24x24 px" in " ".join(found["notes"])
    assert "note: 6 of 7 images" in capsys.readouterr().out
    fitted = np.concatenate(list(FolderImages(folder, (24, 24), 1).batches(4)))
    assert fitted.shape == (7, 24, 24, 3) and fitted.dtype == np.uint8
    Image.new("RGB", (96, 48), "red").save(folder / "wide.png")
    wide = next(iter(FolderImages(folder, (24, 24), 1).batches(8)))[-1]
    assert (wide == (255, 0, 0)).all(), "the last by name, cropped and not squeezed"


def test_an_npz_of_another_size_is_told(colours: None, files: tuple[Path, Path], tmp_path: Path) -> None:
    found = numbers(files[0], save_npz(tmp_path / "large.npz", pictures(9, size=48)))
    assert "the samples are 24x24 px, the reference images 48x48 px." in found["notes"]


# ------------------------------------------------------------------------------------------------ order by class


def classes(count: int, each: int) -> np.ndarray:
    """Images whose colour is that of their class, in order."""
    palette = np.array([(250, 0, 0), (0, 250, 0), (0, 0, 250)], np.uint8)[:count]
    return palette.repeat(each, 0)[:, None, None].repeat(12, 1).repeat(12, 2)


@pytest.mark.parametrize("labelled", [True, False])
def test_an_npz_in_order_of_class_is_told(
    labelled: bool, colours: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its labels, and without them by the drop."""
    monkeypatch.setattr(samples, "IS_SPLIT", 20)
    ordered, path = classes(3, 20), tmp_path / "ordered.npz"
    if labelled:
        save_npz(path, ordered, np.arange(3).repeat(20))
    else:
        np.savez(path, ordered)
    reference = save_npz(tmp_path / "reference.npz", ordered[::2])
    found = numbers(path, reference)
    assert found["ordered_by_class"] and found["inception_score"] == pytest.approx(1)
    assert found["inception_score_shuffled"] > 2
    out = capsys.readouterr().out
    assert "the samples are ordered by class" in out and "the same, shuffled" in out and "62 instead of 280" in out


def test_a_shuffled_npz_is_not(
    colours: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(samples, "IS_SPLIT", 20)
    order = np.random.default_rng(0).permutation(60)
    path = save_npz(tmp_path / "shuffled.npz", classes(3, 20)[order], np.arange(3).repeat(20)[order])
    found = numbers(path, path)
    assert not found["ordered_by_class"] and found["inception_score"] > 2
    assert "ordered by class" not in capsys.readouterr().out


def test_order_does_not_matter_within_one_split(colours: None, tmp_path: Path) -> None:
    path = save_npz(tmp_path / "ordered.npz", classes(3, 20), np.arange(3).repeat(20))
    found = numbers(path, path)
    assert not found["ordered_by_class"]
    assert found["inception_score"] == pytest.approx(found["inception_score_shuffled"])


# ------------------------------------------------------------------------------------------------ what is printed and refused


def test_published_numbers_stand_beside(
    colours: None, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    numbers(*files)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("VAR d", "ReFocus-VAR d")) for line in lines) == 8
    assert any(line.split() == ["ReFocus-VAR", "d16", "2.89", "-", "298.1", "0.85", "0.54"] for line in lines)
    assert any("published" in line and "another machine" in line for line in lines)
    assert any("50 here, 50000 in papers" in line for line in lines)
    numbers(*files, "--depth", "20")
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if " d2" in line or " d1" in line]
    assert rows == [["VAR", "d20"], ["ReFocus-VAR", "d20"]]


def test_columns_stand_under_their_heads() -> None:
    report = SampleReport(50_000, 10_000, 2.891, 5.5, 298.12, 298.0, 0.851, None, False, {"recall": "why."})
    head, ours, *_ = lines = table(report, 16)
    assert ours.split() == ["50000", "samples", "2.89", "5.50", "298.1", "0.85", "-"] and len(head) == len(ours)
    assert lines[-1] == "not measured: recall, because why."
    assert set(PUBLISHED) == {12, 16, 20, 24}
    assert PUBLISHED[12]["VAR"] == {"fid": 5.81, "is": 201.3, "precision": 0.81, "recall": 0.45}  # Table 1
    better = [PUBLISHED[d]["ReFocus-VAR"]["fid"] < PUBLISHED[d]["VAR"]["fid"] for d in PUBLISHED]
    assert all(better) and all(
        set(row) == set(PUBLISHED[12]["VAR"]) for of in PUBLISHED.values() for row in of.values()
    )


def test_too_few_images_for_a_number_are_told(colours: None, files: tuple[Path, Path], tmp_path: Path) -> None:
    three = numbers(files[0], save_npz(tmp_path / "three.npz", pictures(3)))
    assert three["fid"] > 0 and three["precision"] is None and "more than 3 images" in three["not_measured"]["recall"]
    one = numbers(files[0], save_npz(tmp_path / "one.npz", pictures(1)))
    assert one["fid"] is one["sfid"] is None and "at least 2 images" in one["not_measured"]["fid"]


def test_without_weights_a_sentence_and_exit_code_2(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert main(["eval", "--samples", str(files[0]), "--reference", str(files[1]), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "weights-inception-2015-12-05-6726825d.pth" in error and "--inception-weights FILE" in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": "a.npz"}, "--samples needs --reference NPZ_OR_DIR"),
        ({"reference": "b.npz"}, "--reference needs --samples NPZ_OR_DIR"),
        ({"depth": 16}, "--depth needs --samples NPZ_OR_DIR"),
        ({"samples": "a.npz", "reference": "b.npz", "tokenizer": "run"}, "--tokenizer is for a tokenizer"),
        ({"samples": "a.npz", "reference": "b.npz", "images": 5}, "--images is for a tokenizer"),
    ],
)
def test_options_of_the_other_kind_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check(EvalOptions(**options))


def test_files_that_are_none(files: tuple[Path, Path], tmp_path: Path) -> None:
    def refusal(name: Path, as_reference: bool = False) -> str:
        with pytest.raises(UsageError) as error:
            if as_reference:
                open_reference(str(name), NpzImages(files[0]), 1)
            else:
                open_samples(str(name), 1)
        assert str(name) in str(error.value) and str(error.value).endswith(".")
        return str(error.value)

    assert "neither a file nor a folder" in refusal(tmp_path / "nowhere.npz")
    (tmp_path / "text.npz").write_text("no archive")
    assert "is not an npz file" in refusal(tmp_path / "text.npz")
    np.savez(tmp_path / "floats.npz", np.zeros((2, 8, 8, 3)))
    assert "(2, 8, 8, 3) and type float64" in refusal(tmp_path / "floats.npz")
    np.savez(tmp_path / "first.npz", np.zeros((2, 3, 8, 8), np.uint8))
    assert "must be images (N,H,W,3) of uint8" in refusal(tmp_path / "first.npz")
    np.savez(tmp_path / "mu.npz", mu=np.zeros(5), sigma=np.zeros((5, 5)))
    assert "holds no images" in refusal(tmp_path / "mu.npz")
    assert "mu of shape (5,), but these features have 2048" in refusal(tmp_path / "mu.npz", as_reference=True)
    np.savez(tmp_path / "other.npz", x=np.zeros(5))
    assert "neither images (arr_0) nor statistics" in refusal(tmp_path / "other.npz", as_reference=True)
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refusal(tmp_path / "empty")
    save_folder(tmp_path / "mixed", pictures(2))
    Image.new("RGB", (32, 24)).save(tmp_path / "mixed" / "wide.png")
    assert "is 32x24 pixels and 000.png 24x24" in refusal(tmp_path / "mixed")
    (tmp_path / "mixed" / "broken.png").write_bytes(b"nothing")
    assert "not an image that can be opened" in refusal(tmp_path / "mixed")


def test_a_damaged_stream_is_a_failure_of_the_work(files: tuple[Path, Path]) -> None:
    """One flipped byte: the archive's checksum tells at the end, so no number is made of it."""
    with zipfile.ZipFile(files[0]) as archive:
        start = archive.getinfo("arr_0.npy").header_offset
    data = bytearray(files[0].read_bytes())
    data[start + 5000] ^= 1
    files[0].write_bytes(data)
    with pytest.raises(RunFailed, match=r"samples\.npz could not be read to its end"):
        list(NpzImages(files[0]).batches(7))


def test_a_json_that_cannot_be_written(
    colours: None, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "save_json", full)
    words = ["--samples", str(files[0]), "--reference", str(files[1]), "--json", str(tmp_path / "no" / "n.json")]
    assert main(["eval", *words, "--device", "cpu"]) == 1


def test_json_is_looked_at_before_any_work(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--samples", str(files[0]), "--reference", str(files[1]), "--json", str(tmp_path)]
    assert main(words) == 2 and main(["--preflight", "2", *words]) == 2
    out, error = capsys.readouterr()
    assert not out and error.count("is a folder; give the name of a file") == 2


# ------------------------------------------------------------------------------------------------ reference statistics


def write_reference(images: Path, file: Path, *words: str) -> int:
    return main(["eval", "--reference", str(images), "--write-reference", str(file), "--device", "cpu", *words])


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refocus_ext.evaluation.reference_writer.load_inception", load_colours)
    for kind, widths in (("pool", ("mu", "sigma", 12)), ("spatial", ("mu_s", "sigma_s", 27))):
        monkeypatch.setitem(reference.STATISTICS, kind, widths)


def test_written_statistics_give_the_distances_of_their_images(
    colours: None, written: None, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples_file, images = files
    folder = save_folder(tmp_path / "folder", pictures(40, seed=1))
    direct = numbers(samples_file, images)
    for source in (images, folder):
        statistics = tmp_path / "new" / "statistics.npz"
        assert write_reference(source, statistics) == 0
        said = capsys.readouterr().out
        assert "mu_s and sigma_s of 40 images" in said and "warning: 40 reference images are fewer than 10,000" in said
        found = numbers(samples_file, statistics)
        assert [found["fid"], found["sfid"]] == pytest.approx([direct["fid"], direct["sfid"]], rel=1e-6)
        assert found["precision"] is None and "no images" in found["not_measured"]["precision"]
        assert found["counts"]["fid"] == {"samples": 50, "reference": 40} == direct["counts"]["recall"]
        assert found["counts"]["inception_score"] == {"samples": 50} and "precision" not in found["counts"]
        assert "FID, sFID: 50 samples against 40 reference images" in capsys.readouterr().out


def test_others_read_our_file_and_we_theirs(
    colours: None, written: None, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples_file, images = files
    statistics = tmp_path / "statistics.npz"
    assert write_reference(images, statistics) == 0
    with np.load(statistics) as ours:  # what pytorch-fid, and ADM's evaluator, take from it
        theirs = {name: ours[name] for name in ("mu", "sigma")}
        assert ours["mu"].shape == (12,) and ours["sigma_s"].shape == (27, 27) and ours["mu"].dtype == np.float64
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(ours.files)
    whole = numbers(samples_file, statistics)
    np.savez(tmp_path / "pytorch_fid.npz", **theirs, count=np.arange(3))  # another program's count is not ours
    capsys.readouterr()
    found = numbers(samples_file, tmp_path / "pytorch_fid.npz")
    assert found["fid"] == pytest.approx(whole["fid"], rel=1e-9) and found["sfid"] is None
    assert found["counts"]["fid"] == {"samples": 50, "reference": None}
    said = capsys.readouterr().out
    assert "not measured: sFID, because the reference stores mu and sigma but no mu_s and sigma_s" in said
    assert "as pytorch-fid writes them" in said and not any("pytorch-fid" in note for note in whole["notes"])
    assert "FID: 50 samples against statistics of an unknown number of reference images" in said
    assert "warning: 50 samples are fewer than 10,000" in said


def test_a_warning_ends_at_ten_thousand() -> None:
    assert too_few(9_999, "sample", "FID") and not too_few(10_000, "sample", "FID")
    assert not too_few(None, "reference image", "FID")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--write-reference", "a.npz"], "needs --reference"),
        (["--write-reference", "a.npz", "--reference", "x", "--samples", "y"], "omit --samples"),
        (["--write-reference", "a.npz", "--reference", "x", "--json", "y"], "omit --json"),
        (["--write-reference", "a.txt", "--reference", "x"], "must end in .npz"),
        (["--write-reference", "a.npz", "--reference", "mixed"], "or give --reference-size"),
        (["--write-reference", "a.npz", "--reference", "one"], "a covariance needs two"),
        (["--samples", "x", "--reference", "y", "--reference-size", "8"], "is for --write-reference"),
        (["--samples", "x", "--reference", "y", "--crop-scale", "1"], "--crop-scale is for a tokenizer"),
    ],
)
def test_what_cannot_be_written_is_refused_first(
    written: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], text: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save_folder(tmp_path / "one", pictures(1))
    save_folder(tmp_path / "mixed", pictures(2))
    Image.fromarray(pictures(1, size=30)[0]).save(tmp_path / "mixed" / "z.png")
    assert main(["eval", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line and not list(tmp_path.glob("a.*"))
    if "mixed" in words:
        assert main(["eval", *words, "--reference-size", "12", "--device", "cpu"]) == 0
