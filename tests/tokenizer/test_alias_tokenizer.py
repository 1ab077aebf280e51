"""The alias tokenizer: geometry, gradient routes, tokens and back, explained variance, initialisation, shared codebook."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import small_vae
from torch import Tensor, nn
from torch.nn import functional as F

from patches import Focus, load_upstream
from refocus_ext.engine.distributed import World
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.tokenizer.alias.explained_variance import ExplainedVariance, explained_warnings
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.tokenizer import AliasTokenizer, build_alias
from refocus_ext.tokenizer.averages import Averages
from refocus_ext.tokenizer.codebooks import Codebooks, CodeRevival
from refocus_ext.vector_quantization import nearest_code

SMALL = AliasGeometry(image_size=64, states=3, codes=16, code_dim=4, width=8)
SHARED = AliasGeometry(image_size=64, states=3, codes=16, code_dim=4, width=8, codebook="shared")


def smooth_views(geometry: AliasGeometry, images: int, seed: int = 0) -> list[Tensor]:
    """Random alias views with structure to code: low-pass noise, weaker for the blurrier state, a twentieth of [-1,1]."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for k, size in enumerate(geometry.view_sizes):
        coarse = torch.randn(images, 3, int(size) // 4, int(size) // 4, generator=generator)
        views.append(0.05 * (k + 1) * F.interpolate(coarse, size=(int(size), int(size)), mode="bicubic"))
    return views


def lively(tokenizer: AliasTokenizer) -> AliasTokenizer:
    """Undoes the zero starts (corrections, state conditioning), so that every part has a say."""
    generator = torch.Generator().manual_seed(1)
    for parameter in tokenizer.parameters():
        if not parameter.any():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return tokenizer


@pytest.fixture
def views() -> list[Tensor]:
    return smooth_views(SMALL, images=4)


@pytest.fixture
def tokenizer(views: list[Tensor]) -> AliasTokenizer:
    torch.manual_seed(0)
    own = lively(AliasTokenizer(SMALL))
    own(views)  # in train mode: sets the power
    return own


# ------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize(
    ("fields", "grids", "tokens"),
    [
        ({}, (4, 8, 16), 336),
        ({"stride": 4}, (8, 16, 32), 1344),
        ({"stride": 16}, (2, 4, 8), 84),
        ({"image_size": 512}, (8, 16, 32), 1344),
        ({"image_size": 64, "states": 3}, (2, 4), 20),
        ({"image_size": 64, "states": 2}, (4,), 16),
        ({"image_size": 64, "states": 4}, (1, 2, 4), 21),
    ],
)
def test_tokens_per_state(fields: dict[str, int], grids: tuple[int, ...], tokens: int) -> None:
    geometry = AliasGeometry(**fields)  # type: ignore[arg-type]
    assert (geometry.grids, geometry.tokens) == (grids, tokens)
    assert AliasGeometry.from_dict(geometry.to_dict()) == geometry


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_shapes(stride: int) -> None:
    pyramid = FocusPyramid(image_size=128, states=3, rho_max=6.0)
    geometry = AliasGeometry.of(pyramid, stride=stride, codes=8, code_dim=4, width=8)
    tokenizer = AliasTokenizer(geometry)
    x = torch.randn(2, 3, 128, 128)
    out = tokenizer([pyramid.alias(x, k) for k in range(2)])
    cells = [(32 // stride) ** 2, (64 // stride) ** 2]
    assert [tuple(idx.shape) for idx in out.idx_K] == [(2, n) for n in cells]
    assert [tuple(image.shape) for image in out.recon_K] == [(2, 3, 32, 32), (2, 3, 64, 64)]
    assert [tuple(points.shape) for points in out.points_K] == [(2 * n, 4) for n in cells]
    assert all(idx.dtype == torch.int64 for idx in out.idx_K)
    assert tokenizer.codebook_vectors(out.idx_K[1]).shape == (2, cells[1], 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 32, "states": 3, "stride": 16}, r"8 px alias view of focus state 1 .*use stride 4 or 8"),
        ({"image_size": 48, "states": 4}, r"6 px alias view .*fewer states"),
        ({"image_size": 96, "states": 4}, r"stride 8 does not divide the 12 px alias view .*use stride 4"),
        ({"image_size": 36, "states": 4}, r"4\.5 px alias view .*fewer states"),
        ({"stride": 6}, r"6 is not one of 4, 8, 16"),
        ({"stride": 4, "code_dim": 49}, r"code_dim 49 is more than the 48 values"),
        ({"width": 20}, r"width 20 is not a multiple of 8"),
        ({"states": 1}, r"states .* at least 2, got 1"),
        ({"codes": True}, r"codes .* got True"),
        ({"codebook": "both"}, r"unknown alias codebook 'both'; choose one of own, shared"),
    ],
)
def test_illegal_geometry_says_what_and_how_else(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AliasGeometry(**fields)  # type: ignore[arg-type]


def test_unknown_field_of_a_stored_geometry() -> None:
    with pytest.raises(ValueError, match=r"unknown alias fields strid; known are image_size"):
        AliasGeometry.from_dict({"strid": 8})


def test_wrong_views_are_refused(tokenizer: AliasTokenizer, views: list[Tensor]) -> None:
    with pytest.raises(ValueError, match=r"3 alias views were given; 3 focus states have 2"):
        tokenizer([*views, views[0]])
    with pytest.raises(ValueError, match=r"focus state 1 is \(B, 3, 16, 16\), got \(4, 3, 32, 32\)"):
        tokenizer.tokens([views[1], views[0]])
    with pytest.raises(ValueError, match=r"index 2 has no alias tokens"):
        tokenizer.encode(torch.zeros(1, 3, 64, 64), 2)
    with pytest.raises(ValueError, match=r"index -1 has no alias tokens"):
        tokenizer.decode(torch.zeros(1, 4, 4, 4), -1)


# ------------------------------------------------------------------------------------------------ gradients


def test_each_vq_term_has_its_own_route(tokenizer: AliasTokenizer) -> None:
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    table = tokenizer.embedding.weight

    def reached(term: Tensor) -> tuple[bool, bool]:
        grads = torch.autograd.grad(term, [z, table], retain_graph=True, allow_unused=True)
        return grads[0] is not None, grads[1] is not None

    q = tokenizer.quantize(z)
    assert reached(q.commitment) == (True, False)
    assert reached(q.codebook) == (False, True)
    assert reached(q.z_q_BChw.sum()) == (True, False)
    (grad,) = torch.autograd.grad(q.z_q_BChw.sum(), z)
    assert torch.equal(grad, torch.ones_like(z))


def test_reconstruction_reaches_the_encoder_by_straight_through_alone(views: list[Tensor]) -> None:
    torch.manual_seed(0)
    tokenizer = lively(AliasTokenizer(SMALL, commitment=0.0)).eval()
    tokenizer(views).loss.backward()
    stepped = {name: p.grad.clone() for name, p in tokenizer.named_parameters() if p.grad is not None}
    tokenizer.zero_grad()
    for k, A in enumerate(views):  # the same by hand: the decoder's gradient at the codes, handed to the latent
        z = tokenizer.encode(A, k)
        q = tokenizer.quantize(z)
        codes = q.z_q_BChw.detach().requires_grad_()
        F.mse_loss(tokenizer.decode(codes, k), A).div(2 * tokenizer.rms(k) ** 2).backward()
        assert codes.grad is not None
        z.backward(codes.grad)
        (q.codebook / 2).backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), f"{name} is not trained"
        assert torch.allclose(parameter.grad, stepped[name], rtol=1e-4, atol=1e-7), name


def test_straight_through_has_the_codes_value(tokenizer: AliasTokenizer) -> None:
    q = tokenizer.quantize(torch.randn(2, 4, 3, 3))
    assert torch.allclose(q.z_q_BChw.permute(0, 2, 3, 1), tokenizer.codebook_vectors(q.idx_Bhw), atol=1e-6)


def test_nearest_code_is_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    z, table = torch.randn(50, 4), torch.randn(16, 4)
    slow = torch.stack([(row - table).square().sum(1).argmin() for row in z])
    assert torch.equal(nearest_code(z, table), slow)
    monkeypatch.setattr("refocus_ext.vector_quantization.SEARCH", 16 * 7)  # seven rows at a time, the last chunk short
    assert torch.equal(nearest_code(z, table), slow)
    assert nearest_code(torch.zeros(1, 2), torch.ones(3, 2)).item() == 0


def test_search_is_fp32_under_autocast(tokenizer: AliasTokenizer) -> None:
    z = torch.randn(8, 4, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = tokenizer.quantize(z)
    exact = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 4).double(), tokenizer.embedding.weight.double()).argmin(1)
    assert (q.idx_Bhw.flatten() != exact).sum() <= 1  # bf16 flips dozens of the 2048
    assert q.z_q_BChw.dtype == q.commitment.dtype == torch.float32


def test_trains_under_autocast(tokenizer: AliasTokenizer, views: list[Tensor]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tokenizer(views)
    assert out.loss.dtype == out.recon_K[0].dtype == out.points_K[0].dtype == torch.float32
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tokenizer.parameters())


# ------------------------------------------------------------------------------------------------ tokens


def test_tokens_are_those_of_forward_and_decode_to_its_images(tokenizer: AliasTokenizer, views: list[Tensor]) -> None:
    tokenizer.eval()
    tokens, out = tokenizer.tokens(views), tokenizer(views)
    again = tokenizer.tokens(views)
    for k, recon in enumerate(tokenizer.reconstruct(tokens)):
        assert torch.equal(tokens[k], out.idx_K[k]) and torch.equal(tokens[k], again[k])
        assert torch.allclose(recon, out.recon_K[k], atol=1e-6)
        assert len(tokens[k].unique()) > 1


def test_token_order_is_row_by_row(tokenizer: AliasTokenizer, views: list[Tensor]) -> None:
    z = tokenizer.encode(views[1], 1)
    cell = nearest_code(z[:, :, 2, 3], tokenizer.embedding.weight)
    assert torch.equal(tokenizer.tokens(views)[1][:, 2 * 4 + 3], cell)


def test_loss_is_the_sum_of_its_terms(tokenizer: AliasTokenizer, views: list[Tensor]) -> None:
    out = tokenizer.eval()(views)
    t = out.terms
    assert torch.allclose(out.loss, t["recon"] + tokenizer.commitment * t["commitment"] + t["codebook"])
    errors = [F.mse_loss(a, b) / a.square().mean() for a, b in zip(views, out.recon_K, strict=True)]
    assert torch.allclose(t["recon"], torch.stack(errors).mean())


def test_the_focus_state_conditions_both_ways(tokenizer: AliasTokenizer) -> None:
    geometry = AliasGeometry(image_size=64, states=3, codes=16, code_dim=4, width=8)
    tokenizer.power_K.fill_(1.0)  # the RMS aside: what is left is the embedding
    z = torch.randn(1, geometry.code_dim, 4, 4)
    assert not torch.allclose(tokenizer.decode(z, 0), tokenizer.decode(z, 1), atol=1e-3)
    unit = torch.randn(1, 3, 16, 16)
    assert not torch.allclose(tokenizer.encoder(unit, 0), tokenizer.encoder(unit, 1), atol=1e-3)


def test_one_image_does_not_depend_on_its_batch(tokenizer: AliasTokenizer, views: list[Tensor]) -> None:
    whole = tokenizer.eval().tokens(views)
    alone = tokenizer.tokens([view[2:3] for view in views])
    assert all(torch.equal(a[2:3], b) for a, b in zip(whole, alone, strict=True))


# ------------------------------------------------------------------------------------------------ running power


def test_power_follows_training_and_rests_in_eval(views: list[Tensor]) -> None:
    tokenizer = AliasTokenizer(SMALL)
    tokenizer(views)
    tokenizer([3 * view for view in views])
    square = torch.stack([view.square().mean() for view in views])
    assert torch.allclose(tokenizer.power_K, 5 * square)  # the mean of 1 and 9
    frozen = tokenizer.power_K.clone()
    tokenizer.eval()(views)
    assert torch.equal(tokenizer.power_K, frozen)
    assert "power_K" in tokenizer.state_dict() and "seen" in tokenizer.state_dict()


def test_a_broken_batch_leaves_the_power_alone(tokenizer: AliasTokenizer, views: list[Tensor]) -> None:
    before = copy.deepcopy(tokenizer.state_dict())
    tokenizer([views[0] * math.nan, views[1]])
    assert torch.equal(tokenizer.power_K, before["power_K"]) and tokenizer.seen == before["seen"]


def test_scale_of_the_images_changes_no_token() -> None:
    """Unit variance goes in and image units come out: ten times the contrast, the same tokens, ten times the view."""
    views = smooth_views(SMALL, images=4)
    torch.manual_seed(0)
    one = lively(AliasTokenizer(SMALL))
    ten = copy.deepcopy(one)
    a, b = one(views), ten([10 * view for view in views])
    assert all(torch.equal(x, y) for x, y in zip(a.idx_K, b.idx_K, strict=True))
    assert all(torch.allclose(10 * x, y, rtol=1e-3, atol=1e-4) for x, y in zip(a.recon_K, b.recon_K, strict=True))
    assert torch.allclose(a.loss, b.loss, rtol=1e-4)


def test_blank_views_stay_finite() -> None:
    tokenizer = AliasTokenizer(SMALL)
    out = tokenizer([torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 32, 32)])
    assert out.loss.isfinite() and all(image.isfinite().all() for image in out.recon_K)


# ------------------------------------------------------------------------------------------------ explained variance


def test_explained_variance_by_hand() -> None:
    A = torch.zeros(1, 3, 1, 2)
    A[:, 0] = torch.tensor([1.0, 3.0])  # about its mean 2: 1 + 1
    A[:, 1] = torch.tensor([5.0, 5.0])  # no variance
    A_hat = A.clone()
    A_hat[:, 0, 0, 0] += 0.5
    A_hat[:, 2, 0, 1] -= 0.5
    meter = ExplainedVariance(1)
    meter.update([A], [A_hat])
    assert meter.compute() == pytest.approx([1 - (0.25 + 0.25) / 2])


def test_explained_variance_of_the_mean_is_zero_and_of_the_truth_one(views: list[Tensor]) -> None:
    for recon, value in (([v.mean((0, 2, 3), keepdim=True).expand_as(v) for v in views], 0.0), (views, 1.0)):
        meter = ExplainedVariance(2)
        meter.update(views, recon)
        assert meter.compute() == pytest.approx([value, value], abs=1e-6)


def test_explained_variance_streams(tokenizer: AliasTokenizer, views: list[Tensor]) -> None:
    views = [view + 0.3 * torch.arange(4).view(4, 1, 1, 1) for view in views]  # batches of different means
    out = tokenizer.eval()(views)
    streamed, one_shot = ExplainedVariance(2), ExplainedVariance(2)
    one_shot.update(views, out.recon_K)
    for part in (slice(0, 1), slice(1, 4)):
        streamed.update([v[part] for v in views], [r[part] for r in out.recon_K])
    assert streamed.compute() == pytest.approx(one_shot.compute(), rel=1e-9)
    assert one_shot.compute() == pytest.approx([float(v) for v in out.explained_K], abs=1e-4)
    merged = ExplainedVariance(2)
    merged.sums = streamed.sums + one_shot.sums  # as an all-reduce would
    assert merged.compute() == pytest.approx(one_shot.compute(), rel=1e-9)


def test_no_variance_is_nan_and_no_warning() -> None:
    meter = ExplainedVariance(1)
    assert math.isnan(meter.compute()[0])  # nothing seen
    meter.update([torch.full((2, 3, 4, 4), 0.3)], [torch.zeros(2, 3, 4, 4)])
    assert math.isnan(meter.compute()[0])
    assert explained_warnings(meter.compute(), stride=8) == []


def test_weak_states_are_named() -> None:
    lines = explained_warnings([0.06, 0.2, -0.5], stride=8)
    assert len(lines) == 2
    assert lines[0].startswith("alias state 1 explains 6% of its variance, under 10%")
    assert lines[0].endswith("use --alias-stride 4")
    assert lines[1].startswith("alias state 3 explains -50%")
    assert "stride" not in explained_warnings([0.0], stride=4)[0]


# ------------------------------------------------------------------------------------------------ learning


def explained(tokenizer: AliasTokenizer, views: list[Tensor]) -> list[float]:
    tokenizer.eval()
    meter = ExplainedVariance(len(views))
    meter.update(views, tokenizer.reconstruct(tokenizer.tokens(views)))
    tokenizer.train()
    return meter.compute()


def test_initialise_is_patch_coding_at_once() -> None:
    views = smooth_views(SMALL, images=64)
    torch.manual_seed(0)
    tokenizer = AliasTokenizer(AliasGeometry(image_size=64, states=3, codes=64, code_dim=12, width=8))
    before = explained(tokenizer, views)
    tokenizer.initialise(views, torch.Generator().manual_seed(0))
    assert min(explained(tokenizer, views)) > max(0.4, *before)
    assert torch.allclose(tokenizer.power_K, torch.stack([view.square().mean() for view in views]))
    power = tokenizer.power_K.clone()
    tokenizer([2 * view for view in views])
    assert torch.allclose(tokenizer.power_K, power, rtol=0.05)  # one batch does not outweigh the sample
    table = tokenizer.embedding.weight.clone()
    tokenizer.initialise(views, torch.Generator().manual_seed(0))
    assert torch.equal(tokenizer.embedding.weight, table)  # the generator alone decides
    fresh = explained(tokenizer, smooth_views(SMALL, images=64, seed=1))
    assert min(fresh) > 0.3


def test_training_raises_the_explained_variance() -> None:
    """From random weights, so that it is the losses that teach."""
    views = smooth_views(SMALL, images=4)
    torch.manual_seed(0)
    tokenizer = AliasTokenizer(SMALL)
    start = explained(tokenizer, views)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=5e-3)
    for _ in range(60):
        out = tokenizer(views)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert min(explained(tokenizer, views)) > max(0.15, *(value + 0.15 for value in start))


def test_dead_codes_are_revived_from_its_latents(tokenizer: AliasTokenizer, views: list[Tensor]) -> None:
    tokenizer.embedding.weight.data[:15] = 1e3  # far from every latent: one code lives
    revival = CodeRevival(tokenizer)
    out = tokenizer(views)
    revival.count(out.idx_K)
    optimizer = torch.optim.AdamW(tokenizer.parameters())
    assert len(revival.revive(out.points_K, optimizer, torch.Generator().manual_seed(0))) == 15
    assert len(torch.cat([idx.flatten() for idx in tokenizer.tokens(views)]).unique()) > 4


# ------------------------------------------------------------------------------------------------ shared codebook


def test_a_shared_codebook_is_used_but_not_owned(views: list[Tensor]) -> None:
    torch.manual_seed(0)
    structure = nn.Embedding(16, 4)
    tokenizer = lively(AliasTokenizer(SHARED, structure))
    assert not any("codebook" in name for name in tokenizer.state_dict())
    assert all(parameter is not structure.weight for parameter in tokenizer.parameters())
    assert tokenizer.embedding is structure
    before = structure.weight.detach().clone()
    optimizer = torch.optim.SGD(structure.parameters(), lr=1.0)
    tokenizer(views).loss.backward()
    assert structure.weight.grad is not None and structure.weight.grad.any()
    optimizer.step()
    assert not torch.equal(structure.weight, before)
    assert torch.equal(tokenizer.codebook_vectors(torch.arange(16)), structure.weight)


def test_an_own_codebook_is_in_the_state_dict_once(tokenizer: AliasTokenizer) -> None:
    assert [name for name in tokenizer.state_dict() if "codebook" in name] == ["codebook.weight"]
    again = AliasTokenizer(SMALL)
    again.load_state_dict(tokenizer.state_dict(), strict=True)
    views = smooth_views(SMALL, images=4)
    assert all(torch.equal(a, b) for a, b in zip(again.tokens(views), tokenizer.tokens(views), strict=True))


@pytest.mark.parametrize("codes", [64, 16])
def test_a_code_of_a_shared_codebook_that_alias_tokens_use_is_in_use(codes: int) -> None:
    """Structure tokens use codes 0 to 31, alias tokens the last one of theirs; the others become what either codebook met."""
    pyramid = FocusPyramid(image_size=64, states=3, rho_max=6.0)
    vae: Any = small_vae(load_upstream())
    Focus(pyramid).apply(vae)
    alias = build_alias(AliasGeometry.of(pyramid, codebook="shared", width=16, codes=codes, code_dim=8), vae, "cpu")
    plan: Any = SimpleNamespace(seed=0, steps_at=lambda step: 100)
    recipe: Any = SimpleNamespace(revive=1)
    world = World(0, 1, torch.device("cpu"))
    books = Codebooks(plan, recipe, world, vae, alias, Averages(vae, alias, 0.0), None)  # type: ignore[arg-type]
    structure: Any = SimpleNamespace(idx_S=[torch.arange(32)], residual_S=[torch.full((40, 8), 100.0)])
    aliases: Any = SimpleNamespace(idx_K=[torch.tensor([codes - 1])], points_K=[torch.full((40, 8), 200.0)])
    table, last = vae.quantize.embedding.weight, (codes - 1) * 64 // codes
    before = table.detach().clone()
    optimizer = torch.optim.AdamW([table])
    assert books.update(0, [structure], [aliases], optimizer) == {"revived": 31.0}
    changed = (table != before).any(1).nonzero().flatten().tolist()
    assert changed == [code for code in range(32, 64) if code != last]
    assert set(table[changed].flatten().tolist()) == {100.0, 200.0}


def test_initialise_fits_a_shared_codebook_and_leaves_it() -> None:
    geometry = AliasGeometry(image_size=64, states=3, codes=256, code_dim=4, width=8, codebook="shared")
    torch.manual_seed(0)
    structure = nn.Embedding(256, 4)
    structure.weight.data *= torch.tensor([5.0, 0.1, 1.0, 0.1])
    before = structure.weight.detach().clone()
    tokenizer = AliasTokenizer(geometry, structure)
    views = smooth_views(geometry, images=64)
    tokenizer.initialise(views, torch.Generator().manual_seed(0))
    assert torch.equal(structure.weight, before)
    assert min(explained(tokenizer, views)) > 0.02
    assert len(torch.cat([idx.flatten() for idx in tokenizer.tokens(views)]).unique()) > 64


def test_a_copy_is_given_its_own_shared_codebook(views: list[Tensor]) -> None:
    torch.manual_seed(0)
    structure, averaged = nn.Embedding(16, 4), nn.Embedding(16, 4)
    ema = copy.deepcopy(AliasTokenizer(SHARED, structure))
    ema.share(averaged)
    assert ema.embedding is averaged
    assert torch.equal(ema.codebook_vectors(torch.arange(16)), averaged.weight)


def test_a_part_of_a_shared_codebook_is_spread_evenly(views: list[Tensor]) -> None:
    torch.manual_seed(0)
    structure = nn.Embedding(64, 4)
    tokenizer = lively(AliasTokenizer(SHARED, structure))
    assert tokenizer.vocab_size == 16 and torch.equal(tokenizer.table, structure.weight[::4])
    tokens = tokenizer.tokens(views)
    assert max(int(idx.max()) for idx in tokens) < 16
    z = tokenizer.quantize(tokenizer.encode(views[0], 0))
    assert torch.allclose(z.z_q_BChw, structure.weight[::4][z.idx_Bhw].permute(0, 3, 1, 2), atol=1e-6)
    tokenizer(views).loss.backward()
    assert structure.weight.grad is not None
    used = structure.weight.grad.abs().sum(1) > 0
    assert used[::4].any() and not used.view(16, 4)[:, 1:].any()
    before = structure.weight.detach().clone()
    tokenizer.initialise(views, torch.Generator().manual_seed(0))
    assert torch.equal(structure.weight, before)


def test_codebooks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r'"shared" needs the structure codebook'):
        AliasTokenizer(SHARED)
    with pytest.raises(ValueError, match=r'given to an alias tokenizer with codebook "own"'):
        AliasTokenizer(SMALL, nn.Embedding(16, 4))
    with pytest.raises(ValueError, match=r"is 16 codes of 8, the alias geometry has 16 of 4"):
        AliasTokenizer(SHARED, nn.Embedding(16, 8))
