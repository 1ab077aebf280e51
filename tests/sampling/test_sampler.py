"""The sampler: upstream's bits from one generator, images of their own from one each, and tokens that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATCH_NUMS, inside
from students import lively_var, write_run
from torch import Tensor

from patches import Upstream
from patches.sampling import sample_as_upstream
from refocus_ext.errors import RunFailed
from refocus_ext.images.picture import image_bytes, to_image
from refocus_ext.sampling.sampler import (
    Guidance,
    KeptTokens,
    Noise,
    Prefixes,
    image_seeds,
    kept_cells,
    sample,
    sample_images,
)
from refocus_ext.sampling.student import Student, load_student

GUIDANCE = Guidance(cfg=3.0, top_k=20, top_p=0.9)
LABELS = torch.tensor([1, 4, 5])  # the last is "no class"
SETTINGS = [
    GUIDANCE,
    Guidance(cfg=1.5, top_k=64, top_p=0.96),
    Guidance(cfg=0.0, top_k=1, top_p=0.0),
    Guidance(cfg=4.0, top_k=0, top_p=0.5),
    Guidance(cfg=2.0, top_k=0, top_p=0.0, smooth=True),
    Guidance(cfg=4.0, top_k=20, top_p=0.9, smooth=True),
]


@pytest.fixture
def student(tmp_path: Path) -> Student:
    return load_student(write_run(tmp_path / "run"))


def by_upstream(var: Any, label_B: Tensor, seed: int, guidance: Guidance) -> Tensor:
    return var.autoregressive_infer_cfg(
        B=len(label_B),
        label_B=label_B,
        g_seed=seed,
        cfg=guidance.cfg,
        top_k=guidance.top_k,
        top_p=guidance.top_p,
        more_smooth=guidance.smooth,
    )


@pytest.mark.parametrize("shared_aln", [False, True])
@pytest.mark.parametrize("guidance", SETTINGS)
def test_one_generator_is_upstream_to_the_bit(upstream: Upstream, guidance: Guidance, shared_aln: bool) -> None:
    var = lively_var(upstream, shared_aln=shared_aln)
    for label_B in (LABELS, LABELS[:1]):
        assert torch.equal(sample(var, label_B, Noise([5], "cpu"), guidance), by_upstream(var, label_B, 5, guidance))


def test_codes_are_drawn_as_multinomial_draws_them() -> None:
    """Each image by its own generator, whose state is then the same."""
    probability_BlV = torch.rand(2, 9, 50).square()
    noise, generators = Noise([5, 6], "cpu"), [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    for _ in range(3):
        drawn = [
            torch.multinomial(p, 1, generator=own)[:, 0] for p, own in zip(probability_BlV, generators, strict=True)
        ]
        assert torch.equal(noise.draw(probability_BlV), torch.stack(drawn))


def test_damaged_weights_are_one_sentence(student: Student) -> None:
    inside(student.var).head.weight.data[0, 0] = float("nan")
    image = sample_images(student, [0])
    for draw in (image_bytes, lambda image_B3HW: to_image(image_B3HW[0])):
        with pytest.raises(RunFailed, match="not finite: the weights that made it are damaged"):
            draw(image)


@pytest.mark.parametrize("guidance", [GUIDANCE, SETTINGS[-1]])
def test_an_image_alone_is_upstreams_for_its_seed(student: Student, guidance: Guidance) -> None:
    alone = sample_images(student, [4], seed=9, first=7, guidance=guidance)
    (seed,) = image_seeds(9, [7])
    assert torch.equal(alone, by_upstream(student.var, torch.tensor([4]), seed, guidance))


def test_an_image_does_not_depend_on_its_neighbours(student: Student) -> None:
    together = sample_images(student, [1, 4, 2], seed=3, guidance=GUIDANCE)
    for number, label in enumerate([1, 4, 2]):
        others = [0, 0, 0]
        others[number] = label
        among_others = sample_images(student, others, seed=3, guidance=GUIDANCE)
        assert torch.equal(among_others[number], together[number])
    assert not torch.equal(sample_images(student, [1, 4, 2], seed=4, guidance=GUIDANCE), together)
    # the second of three is the first of two that begin there (equal tokens; the pixels up to the batch's size)
    later = sample_images(student, [4, 2], seed=3, first=1, guidance=GUIDANCE)
    assert torch.allclose(later, together[1:], atol=1e-4)


def test_labels_and_guidance_matter(student: Student) -> None:
    images = [sample_images(student, [label], guidance=GUIDANCE) for label in (0, 1)]
    assert not torch.equal(*images)
    assert not torch.equal(images[0], sample_images(student, [0], guidance=Guidance(cfg=0.0, top_k=20, top_p=0.9)))


def test_images_are_in_the_unit_range_and_fp32(student: Student) -> None:
    image = sample_images(student, [1, 2], guidance=GUIDANCE)
    assert image.shape == (2, 3, 64, 64) and image.dtype == torch.float32
    assert 0 <= float(image.min()) < float(image.max()) <= 1


def test_more_codes_than_there_are_keeps_all(student: Student) -> None:
    everything = Guidance(top_k=900, top_p=0.0)
    assert torch.equal(
        sample_images(student, [1], guidance=everything),
        sample_images(student, [1], guidance=Guidance(top_k=0, top_p=0.0)),
    )
    assert torch.equal(
        sample_as_upstream(student.var, [1, 2], seed=3, guidance=everything),
        by_upstream(student.var, torch.tensor([1, 2]), 3, Guidance(top_k=64, top_p=0.0)),
    )


class Stop(Exception):
    pass


@pytest.mark.parametrize("ours", [True, False])
def test_caches_are_off_after_a_failure(student: Student, monkeypatch: pytest.MonkeyPatch, ours: bool) -> None:
    before = sample_images(student, [1, 2], guidance=GUIDANCE)
    pooled, calls = inside(student.vae.quantize).get_next_autoregressive_input, list[int]()

    def fail_at_the_second_scale(*words: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Stop
        return pooled(*words)

    with monkeypatch.context() as patch:
        patch.setattr(student.vae.quantize, "get_next_autoregressive_input", fail_at_the_second_scale)
        with pytest.raises(Stop):
            sample_images(student, [1, 2], guidance=GUIDANCE) if ours else sample_as_upstream(
                student.var, [1, 2], guidance=GUIDANCE
            )
    assert all(not b.attn.caching and b.attn.cached_k is None for b in inside(student.var).blocks)
    assert torch.equal(sample_images(student, [1, 2], guidance=GUIDANCE), before)


def test_prefixes_end_with_the_image(student: Student) -> None:
    prefixes = Prefixes(student)
    image = sample_images(student, [1, 2], guidance=GUIDANCE, watch=prefixes)
    assert len(prefixes.images) == len(PATCH_NUMS) and torch.equal(prefixes.images[-1], image)
    assert torch.equal(image, sample_images(student, [1, 2], guidance=GUIDANCE))  # watching changes nothing
    assert not torch.equal(prefixes.images[0], prefixes.images[1])


# ------------------------------------------------------------------------------------------------ keeping tokens


def reconstruction(student: Student, idx_S: list[Tensor]) -> Tensor:
    return (student.vae.idxBl_to_img(idx_S, same_shape=True, last_one=True) + 1) / 2


def test_keeping_every_token_is_the_reconstruction(student: Student, images: Tensor) -> None:
    idx_S = student.tokens(images[:1])
    everything = KeptTokens(student, idx_S, torch.ones(4, 4, dtype=torch.bool))
    edited = sample_images(student, [1], guidance=GUIDANCE, exchange=everything)
    assert torch.allclose(edited, reconstruction(student, idx_S), atol=1e-5)
    nothing = KeptTokens(student, idx_S, torch.zeros(4, 4, dtype=torch.bool))
    assert torch.equal(
        sample_images(student, [1], guidance=GUIDANCE, exchange=nothing), sample_images(student, [1], guidance=GUIDANCE)
    )


def test_kept_cells_by_hand() -> None:
    kept = torch.zeros(4, 4, dtype=torch.bool)
    kept[0, 3] = True
    assert torch.equal(kept_cells(kept, 4), kept)
    assert kept_cells(kept, 2).tolist() == [[False, True], [False, False]]
    assert kept_cells(kept, 1).tolist() == [[True]]
    # three cells over four overlap by thirds: the last column of three touches the last of four alone
    assert kept_cells(kept, 3).tolist() == [[False, False, True], [False] * 3, [False] * 3]


def test_the_latent_of_kept_cells_is_the_images(student: Student, images: Tensor) -> None:
    """Away from the edited cells nothing but the image's tokens adds to f_hat."""
    idx_S = student.tokens(images[:1])
    kept = torch.ones(4, 4, dtype=torch.bool)
    kept[:, 3] = False
    seen: list[Tensor] = []
    keep = KeptTokens(student, idx_S, kept)
    sample_images(student, [1], guidance=GUIDANCE, exchange=keep, watch=lambda _, f_hat: seen.append(f_hat.clone()))
    with torch.no_grad():
        own = inside(student.vae.quantize).embed_to_fhat(
            [
                student.vae.quantize.embedding(idx).transpose(1, 2).view(1, -1, pn, pn)
                for idx, pn in zip(idx_S, PATCH_NUMS, strict=True)
            ],
            last_one=True,
        )
    assert torch.allclose(seen[-1][..., :1], own[..., :1], atol=1e-5)
    assert not torch.allclose(seen[-1][..., 3], own[..., 3], atol=1e-2)
