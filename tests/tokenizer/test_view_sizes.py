"""Smaller views of the blurred states (--views half, decimated), blur "sharp", and the consistency of latents."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from patches import Focus, Upstream
from patches.vae_init import init_vae_weights
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.tokenizer.cost import modules_of, step_cost
from refocus_ext.tokenizer.losses.objective import StructureObjective, latent_consistency
from refocus_ext.tokenizer.prefixes import prefixes, psnr, validate
from refocus_ext.tokenizer.recipe import StructureWeights

CPU = torch.device("cpu")


def pyramid(**fields: Any) -> FocusPyramid:
    return FocusPyramid(image_size=64, states=3, rho_max=6.0, **fields)


@pytest.fixture
def build(upstream: Upstream) -> Any:
    def make(**fields: Any) -> Any:
        torch.manual_seed(0)
        vae = upstream.build_vae(vocab_size=32, z_channels=8, ch=32, patch_nums=(1, 2, 3, 4), test_mode=False)
        init_vae_weights(vae)
        Focus(pyramid(**fields)).apply(vae)
        return vae

    return make


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.nn.functional.interpolate(torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1, (64, 64))


@pytest.mark.parametrize(
    ("views", "sizes"), [("full", (64, 64, 64)), ("half", (32, 64, 64)), ("decimated", (16, 32, 64))]
)
def test_views_are_samples_of_the_focus_states(views: str, sizes: tuple[int, ...], images: Tensor) -> None:
    some = pyramid(views=views)
    found = some.structure_views(images)
    assert tuple(view.shape[-1] for view in found) == sizes
    for k, (view, d) in enumerate(zip(found, some.subsampling, strict=True)):
        blocks = some.focused(images, k).unfold(2, d, d).unfold(3, d, d)  # (B,3,h,w,d,d)
        middle = slice((d - 1) // 2, d // 2 + 1)
        assert torch.allclose(view, blocks[..., middle, middle].mean((-2, -1)), atol=1e-6)


def test_upsampled_views_are_not_shifted() -> None:
    """A ramp stays where it is, but for the borders; with samples at the blocks' corners it would move by 1.5 pixels."""
    ramp = torch.linspace(-1, 1, 64).view(1, 1, 1, 64).expand(1, 3, 64, 64).contiguous()
    some = pyramid(views="decimated")
    up = torch.nn.functional.interpolate(some.structure_view(ramp, 0), (64, 64), mode="bicubic")
    error = (up - ramp)[..., 20:44]  # a step of the ramp is 0.03; torch's bicubic filter is not exact on it
    assert error.mean().abs() < 1e-4 and error.abs().max() < 0.01


def test_full_views_are_what_a_pyramid_without_the_field_has() -> None:
    assert "views" not in pyramid().to_dict() and pyramid(views="half").to_dict()["views"] == "half"
    for some in (pyramid(), pyramid(views="half")):
        assert FocusPyramid.from_dict(some.to_dict()) == some
    with pytest.raises(ValueError, match="unknown views 'third'; choose one of full, half, decimated"):
        pyramid(views="third")
    with pytest.raises(ValueError, match="one pixel in 2 of a 48 px image"):
        FocusPyramid(image_size=48, states=2, rho_max=3.0, views="decimated")


def test_targets_are_upsampled_and_the_sharp_one_is_stock(build: Any, images: Tensor) -> None:
    full, small = build().eval(), build(views="decimated").eval()
    with torch.no_grad():
        own, targets = small.encode_states(images), small.encode_targets(images)
        assert [latent.shape[-1] for latent in own] == [1, 2, 4] and all(T.shape[-1] == 4 for T in targets)
        assert torch.equal(targets[2], full.encode_targets(images)[2])
        assert torch.allclose(targets[0], own[0].expand_as(targets[0]), atol=1e-6)  # one cell fills the latent
        assert [len(tokens[0]) for tokens in small.img_to_idxBl(images)] == [1, 4, 9, 16]
        shown = prefixes(small, images)
    assert all(image.shape == images.shape and image.abs().max() <= 1 for image in shown)


@pytest.mark.parametrize("state", [0, 1, 2])
def test_prefix_and_anchor_are_decoded_at_the_views_size(build: Any, images: Tensor, state: int) -> None:
    vae = build(views="decimated").train()
    sides: list[int] = []
    decode = vae.decode

    def watched(f_hat: Tensor) -> Tensor:
        sides.append(f_hat.shape[-1])
        return decode(f_hat)

    vae.__dict__["decode"] = watched
    out = StructureObjective(vae, StructureWeights(prefix=1)).train()(images, state)
    assert sides == [4, *([2**state] * (2 if state < 2 else 1))]
    out.loss.backward()
    assert vae.encoder.conv_in.weight.grad.isfinite().all()


def test_validation_also_decodes_smaller_views_at_the_images_size(build: Any, images: Tensor) -> None:
    vae = build(views="decimated").eval()
    report = validate(vae, [images, images])
    latents = vae.encode_targets(images)
    f_hat_S = vae.quantize.f_to_idxBl_or_fhat(latents, to_fhat=True)
    last = vae.focus_pyramid.last_scale_of_state(vae.quantize.v_patch_nums)[0]
    by_hand = psnr(vae.decode(f_hat_S[last]), vae.focus_pyramid.focused(images, 0)).mean().item()
    assert report.psnr_upstream_K is not None and report.psnr_upstream_K[0] == pytest.approx(by_hand, abs=1e-4)
    assert report.psnr_upstream_K[0] != pytest.approx(report.psnr_focus_K[0], abs=1e-4)
    assert report.psnr_upstream_K[2] == pytest.approx(report.psnr_focus_K[2], abs=1e-4), (
        "the sharp view has the image's size"
    )
    apart = [
        ((small - large).flatten(1).norm(dim=1) / large.flatten(1).norm(dim=1)).mean()
        for small, large in itertools.pairwise(latents)
    ]
    assert report.disagreement == pytest.approx(float(sum(apart)) / 2, rel=1e-4)
    full = validate(build().eval(), [images])
    assert full.psnr_upstream_K is None and full.disagreement is None, "nothing to add to full views"


def test_smaller_views_cost_less(build: Any) -> None:
    counts = {}
    for views in ("full", "half", "decimated"):
        cost = step_cost(modules_of(build(views=views), None, None, False), StructureWeights(prefix=1), CPU)
        counts[views] = cost
    assert counts["half"].encodes == 2.25 and counts["decimated"].encodes == 1 + 1 / 4 + 1 / 16
    assert counts["decimated"].mean_decodes == pytest.approx(1 + (2 / 16 + 2 / 4 + 1) / 3)
    assert counts["decimated"].flops < 0.6 * counts["full"].flops
    assert counts["decimated"].saved_bytes < counts["half"].saved_bytes < counts["full"].saved_bytes


def test_consistency_is_the_relative_distance_of_pooled_latents() -> None:
    large = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    assert latent_consistency([pooled, large]) == 0
    assert float(latent_consistency([pooled + 1, large])) == pytest.approx(1 / float(large.square().mean()))
    scaled = [3 * (pooled + 1), 3 * large]  # growing latents change nothing
    assert float(latent_consistency(scaled)) == pytest.approx(float(latent_consistency([pooled + 1, large])))
    assert float(latent_consistency([large])) == 0


def test_consistency_is_a_term_of_the_loss(build: Any, images: Tensor) -> None:
    vae = build(views="decimated").eval()
    with torch.no_grad():
        plain = StructureObjective(vae, StructureWeights(prefix=1)).eval()(images, 0)
        with_it = StructureObjective(vae, StructureWeights(prefix=1, consistency=2.0)).eval()(images, 0)
    assert "consistency" not in plain.terms and with_it.terms["consistency"] > 0
    assert float(with_it.loss - plain.loss) == pytest.approx(2 * float(with_it.terms["consistency"]), rel=1e-3)


def test_sharp_states_differ_from_blurred_ones_in_the_blur_alone(build: Any, images: Tensor) -> None:
    vae = build(blur="sharp").train()
    some, disk = vae.focus_pyramid, pyramid()
    assert some.refocuses and not some.blurs and all(some.focused(images, k) is images for k in range(3))
    for k in range(3):  # the teacher's views keep the disk
        assert torch.equal(some.alias(images, k), disk.alias(images, k))
    torch.manual_seed(0)
    noisy = some.structure_views(images, training=True)
    stds = [float((view - images).std()) for view in noisy]
    assert stds == pytest.approx(list(some.noise_levels), rel=0.1)
    out = StructureObjective(vae, StructureWeights(prefix=1)).train()(images, 0)
    assert {"recon", "prefix", "anchor"} <= set(out.terms) and math.isfinite(out.loss.item())
    vae.eval()
    with torch.no_grad():
        targets = vae.encode_targets(images)
    assert torch.equal(targets[0], targets[2])
