"""Loading a student: every layout of its files gives the same network; what does not fit is said in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATCH_NUMS, small_vae
from safetensors.torch import save_file
from students import CLASSES, lively_var, write_run
from torch import Tensor

from patches import Upstream, load_upstream
from refocus_ext.errors import UsageError
from refocus_ext.images.class_names import imagenet_names, labels_of
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.sampling.student import Student, load_student
from refocus_ext.storage.upstream_weights import vae_state_dict, var_geometry, var_state_dict
from refocus_ext.tokenizer.plan import load_published


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "distill-d2")


def sampled(student: Student) -> Tensor:
    return student.var.autoregressive_infer_cfg(B=2, label_B=torch.tensor([1, 2]), g_seed=0, top_k=20, top_p=0.9)


def as_published(run: Path, folder: Path) -> Path:
    """The run's weights under upstream's names, and nothing else."""
    folder.mkdir()
    shutil.copy(run / "var_d2.pth", folder)
    shutil.copy(run / "vae.pth", folder / "vae_ch32v64z8.pth")
    return folder


def as_checkpoint(run: Path, path: Path) -> Path:
    """The weights as upstream's trainer saves them."""
    trainer = {
        "var_wo_ddp": torch.load(run / "var_d2.pth", weights_only=True),
        "vae_local": torch.load(run / "vae.pth", weights_only=True),
        "config": {"prog_it": 0},
    }
    torch.save({"epoch": 3, "iter": 0, "trainer": trainer, "args": {"depth": 2, "pn": "1_2_3_4"}}, path)
    return path


def as_safetensors(run: Path, folder: Path) -> Path:
    """The twins alone."""
    folder.mkdir()
    for name, twin in (("var_d2.pth", "var_d2.safetensors"), ("vae.pth", "vae_ch32v64z8.safetensors")):
        save_file(torch.load(run / name, weights_only=True), folder / twin)
    return folder


def test_a_run_is_loaded_as_it_was_trained(run: Path) -> None:
    student = load_student(run)
    assert student.classes == tuple(CLASSES) and student.image_size == 64 and student.num_classes == 5
    assert student.pyramid == FocusPyramid(image_size=64, states=3, rho_max=6.0)
    for network, name in ((student.var, "var_d2.pth"), (student.vae, "vae.pth")):
        assert not network.training and not any(p.requires_grad for p in network.parameters())
        state = torch.load(run / name, weights_only=True)
        assert state.keys() == network.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_every_layout_is_the_same_student(run: Path, tmp_path: Path) -> None:
    expected = sampled(load_student(run))
    folder = as_published(run, tmp_path / "published")
    (tmp_path / "alone").mkdir()
    checkpoint = as_checkpoint(run, tmp_path / "alone" / "ar-ckpt-best.pth")
    for source, vae in (
        (folder, None),
        (folder / "var_d2.pth", None),
        (run / "var_d2.pth", None),
        (run, folder / "vae_ch32v64z8.pth"),
        (checkpoint, None),
        (checkpoint, run / "vae.pth"),
        (folder, checkpoint),
        (tmp_path / "alone", None),  # a training run's folder
        (as_checkpoint(run, tmp_path / "alone" / "var_d2.pth"), None),  # renamed
        (as_safetensors(run, tmp_path / "hub"), None),
        (folder, run),  # a folder with the VAE
    ):
        assert torch.equal(sampled(load_student(source, vae=vae)), expected), (source, vae)
    assert load_student(folder).pyramid is None and load_student(run / "var_d2.pth").pyramid is not None


def test_geometry_is_read_from_the_tensors(upstream: Upstream) -> None:
    vae = small_vae(upstream, vocab_size=32, z_channels=4, patch_nums=(1, 3, 4))
    var = upstream.build_var(vae, depth=3, num_classes=7, shared_aln=True, embed_dim=96, num_heads=6)
    shape = var_geometry(var.state_dict())
    assert (shape.depth, shape.embed_dim, shape.num_heads, shape.num_classes) == (3, 96, 6, 7)
    assert (shape.shared_aln, shape.patch_nums, shape.vocab_size, shape.z_channels) == (True, (1, 3, 4), 32, 4)
    assert shape.attn_l2_norm and not var_geometry(lively_var(upstream, attn_l2_norm=False).state_dict()).attn_l2_norm


def test_shared_adaln_is_loaded(tmp_path: Path) -> None:
    var = lively_var(load_upstream(), shared_aln=True)
    run = write_run(tmp_path / "run", var=var)
    assert torch.equal(sampled(load_student(run)), sampled_by(var))


def sampled_by(var: Any) -> Tensor:
    return var.autoregressive_infer_cfg(B=2, label_B=torch.tensor([1, 2]), g_seed=0, top_k=20, top_p=0.9)


def test_tokens_follow_the_runs_pyramid_and_leave_the_vae_stock(run: Path, tmp_path: Path, images: Tensor) -> None:
    student, published = load_student(run), load_student(as_published(run, tmp_path / "published"))
    stock = type(student.vae)
    focus, plain = student.tokens(images), published.tokens(images)
    assert type(student.vae) is stock
    assert all(torch.equal(a, b) for a, b in zip(plain, student.vae.img_to_idxBl(images), strict=True))
    assert [tuple(idx.shape) for idx in focus] == [(3, pn * pn) for pn in PATCH_NUMS]
    assert any(not torch.equal(a, b) for a, b in zip(focus, plain, strict=True))


def test_the_pyramid_goes_with_the_vae_of_the_run(run: Path, tmp_path: Path, images: Tensor) -> None:
    own = load_student(run)
    elsewhere = tmp_path / "elsewhere.pth"
    elsewhere.write_bytes((run / "vae.pth").read_bytes())
    (run / "vae.pth").unlink()
    given = load_student(run, vae=elsewhere)
    assert given.pyramid == own.pyramid and not given.notes
    assert all(torch.equal(a, b) for a, b in zip(given.tokens(images), own.tokens(images), strict=True))
    other = torch.load(elsewhere, weights_only=True)
    other["quantize.embedding.weight"] += 1
    torch.save(other, elsewhere)
    another = load_student(run, vae=elsewhere)
    assert another.pyramid is None and "is not the VAE of its run: images are encoded without" in another.notes[0]


def test_a_configuration_of_another_program_does_not_matter(run: Path, tmp_path: Path) -> None:
    folder = as_published(run, tmp_path / "published")
    (folder / "config.json").write_text('{"model_type": "var"}')
    for source in (folder, folder / "var_d2.pth"):
        assert torch.equal(sampled(load_student(source)), sampled(load_student(run)))


# ------------------------------------------------------------------------------------------------ what does not fit


def complaint(source: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as error:
        load_student(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_files_are_named(run: Path, tmp_path: Path) -> None:
    assert "does not exist" in complaint(tmp_path / "nothing")
    folder = as_published(run, tmp_path / "published")
    shutil.copy(folder / "var_d2.pth", folder / "var_d4.pth")
    assert "several files of VAR weights (var_d2.pth, var_d4.pth)" in complaint(folder)
    (folder / "vae_ch32v64z8.pth").unlink()
    assert "give the file of its VAE" in complaint(folder / "var_d2.pth")
    assert "holds no VQVAE but a VAR" in complaint(folder / "var_d2.pth", vae=folder / "var_d2.pth")
    assert "holds no VAR but a VQVAE" in complaint(run / "vae.pth", vae=run / "vae.pth")
    (run / "var_d2.pth").unlink()
    assert "training is not finished" in complaint(run)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("what", ["var", "vae"])
def test_a_folder_in_the_place_of_weights_is_named(what: str, published: bool, run: Path, tmp_path: Path) -> None:
    source = as_published(run, tmp_path / "published") if published else run
    (file,) = source.glob(f"{what}*.pth")
    file.unlink()
    file.mkdir()
    assert complaint(source) == f"{file} is a folder, not a file of weights; remove it and put the file in its place."


def test_another_commands_run_is_refused(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"command": "tokenizer"}))
    assert "is a run of `tokenizer`, which has no student" in complaint(run)
    (run / "config.json").write_text("{")
    assert "is not the configuration of a distill run" in complaint(run)


def test_changed_weights_are_refused(run: Path) -> None:
    state = torch.load(run / "vae.pth", weights_only=True)
    torch.save(state | {"quantize.embedding.weight": state["quantize.embedding.weight"] + 1}, run / "vae.pth")
    assert "is not the file that its run wrote" in complaint(run)


def test_damaged_and_foreign_files_are_refused(run: Path, tmp_path: Path) -> None:
    folder = as_published(run, tmp_path / "published")
    whole = (folder / "var_d2.pth").read_bytes()
    (folder / "var_d2.pth").write_bytes(whole[: len(whole) // 2])
    assert "or is damaged" in complaint(folder)
    state = torch.load(run / "var_d2.pth", weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "head.bias"}, folder / "var_d2.pth")
    assert "is not an upstream VAR" in complaint(folder)
    torch.save({"trainer": {"var_opt": {}}}, folder / "var_d2.pth")
    assert "a training checkpoint without a VAR" in complaint(folder)


def test_a_vae_of_other_codes_is_refused(run: Path, tmp_path: Path) -> None:
    other = small_vae(load_upstream(), vocab_size=32)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    assert "predicts 64 codes of 8 channels, but" in complaint(run, vae=tmp_path / "other.pth")


def test_the_tokenizers_init_takes_both_layouts(run: Path, tmp_path: Path) -> None:
    upstream, expected = load_upstream(), torch.load(run / "vae.pth", weights_only=True)
    for path in (run / "vae.pth", as_checkpoint(run, tmp_path / "ar-ckpt-last.pth")):
        vae = small_vae(upstream, seed=7)
        load_published(vae, path)
        assert all(torch.equal(value, expected[key]) for key, value in vae.state_dict().items())
        assert vae_state_dict(path).keys() == expected.keys()
    assert var_state_dict(tmp_path / "ar-ckpt-last.pth").keys() == var_state_dict(run / "var_d2.pth").keys()
    with pytest.raises(UsageError, match=r"--init .* holds no VQVAE but a VAR"):
        load_published(small_vae(upstream), run / "var_d2.pth")


# ------------------------------------------------------------------------------------------------ classes


def test_classes_by_number_and_name(run: Path) -> None:
    student = load_student(run)
    assert student.labels("2,golden retriever, TENCH,none,4") == [2, 1, 0, 5, 4]
    assert [student.class_name(label) for label in (1, 4, 5)] == ["Golden Retriever", "class 4", "no class"]
    for words, message in (
        ("goldn retriever", "did you mean Golden Retriever?"),
        ("5", "the classes are numbered 0 to 4"),
        ("xyzzy", "the names are 'tench', 'Golden Retriever', 'toaster'."),
        (" , ", "no classes are given"),
    ):
        with pytest.raises(UsageError) as error:
            student.labels(words)
        assert message in str(error.value)


def test_imagenet_names(run: Path, tmp_path: Path) -> None:
    names = imagenet_names()
    assert len(names) == 1000 and labels_of('"golden retriever",980', names, 1000) == [207, 980]
    assert labels_of("Cardigan,cardigan", names, 1000) == [264, 474]
    with pytest.raises(UsageError, match="labels 264 and 474; give the number"):
        labels_of("CARDIGAN", names, 1000)
    var = lively_var(load_upstream(), num_classes=1000)
    folder = as_published(write_run(tmp_path / "run", var=var), tmp_path / "imagenet")
    assert load_student(folder).classes == names


def test_class_names_from_a_file(run: Path, tmp_path: Path) -> None:
    folder = as_published(run, tmp_path / "published")
    assert load_student(folder).classes == ()
    with pytest.raises(UsageError, match="have no names; give numbers from 0 to 4"):
        load_student(folder).labels("tench")
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    assert load_student(folder, class_names=tmp_path / "names.txt").labels("E") == [4]
    (tmp_path / "names.json").write_text(json.dumps(list("abcdef")))
    assert "names 6 classes, but the student has 5" in complaint(folder, class_names=tmp_path / "names.json")
