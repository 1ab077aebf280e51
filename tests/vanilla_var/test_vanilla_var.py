"""Properties of the stand-in refocus_ext/vanilla_var that need no submodule; see test_conformance.py for the rest."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as tdist
from torch.nn import functional as F

from refocus_ext.vanilla_var import VAR, VQVAE, DropPath, VectorQuantizer2, sample_with_top_k_top_p_

PATCH_NUMS = (1, 2, 3, 4)
ENDS = (1, 5, 14, 30)  # tokens up to and including each scale
B = 3


def quantizer(**options: Any) -> VectorQuantizer2:
    torch.manual_seed(0)
    return VectorQuantizer2(64, 8, **{"using_znorm": False, "v_patch_nums": PATCH_NUMS, **options})


def vae(**options: Any) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(**{"vocab_size": 64, "z_channels": 8, "ch": 32, "v_patch_nums": PATCH_NUMS, **options})


@torch.no_grad()
def var(**options: Any) -> VAR:
    """In eval mode, without label drop, and with weights large enough for every part to act."""
    sizes = {"num_classes": 10, "depth": 2, "embed_dim": 64, "num_heads": 2, "patch_nums": PATCH_NUMS}
    model = VAR(vae(), cond_drop_rate=0.0, **{**sizes, **options}).eval()
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 2 else 0.5))
    return model


def latent() -> Tensor:
    return torch.randn(B, 8, 4, 4, generator=torch.Generator().manual_seed(1)) * 1.5


# ---------------------------------------------------------------------------------------------------- quantizer


@pytest.mark.parametrize("using_znorm", [False, True])
def test_nearest_code_is_what_brute_force_finds(using_znorm: bool) -> None:
    q = quantizer(using_znorm=using_znorm)
    z, codes = torch.randn(50, 8).double(), q.embedding.weight.detach().double()
    if using_znorm:
        z, codes = F.normalize(z, dim=1), F.normalize(codes, dim=1)
    expected = (z[:, None] - codes[None]).square().sum(-1).argmin(1)
    assert torch.equal(q.nearest_code(z.float()), expected)


def test_of_equal_codes_the_lowest_is_taken() -> None:
    q = quantizer()
    with torch.no_grad():
        q.embedding.weight[40] = q.embedding.weight[7]
    assert q.nearest_code(q.embedding.weight[[40, 7]].detach()).tolist() == [7, 7]


@pytest.mark.parametrize(("share", "phis"), [(0, 4), (1, 1), (2, 2), (4, 4)])
def test_encoding_and_decoding_side_agree_to_the_bit(share: int, phis: int) -> None:
    q = quantizer(share_quant_resi=share)
    assert sum(isinstance(m, nn.Conv2d) for m in q.modules()) == phis
    tokens, encoded = (q.f_to_idxBl_or_fhat(latent(), to_fhat=to_fhat) for to_fhat in (False, True))
    decoded = q.embed_to_fhat([q.code_map(idx, (pn, pn)) for idx, pn in zip(tokens, PATCH_NUMS, strict=True)])
    for i, f_hat in enumerate(encoded):
        assert torch.equal(f_hat, decoded[i])
    pooled = [F.interpolate(f, (pn, pn), mode="area") for f, pn in zip(encoded, PATCH_NUMS[1:], strict=False)]
    expected = torch.cat([f.flatten(2).transpose(1, 2) for f in pooled], dim=1)
    inputs = q.idxBl_to_var_input(tokens)
    assert inputs is not None and torch.equal(inputs, expected)


def test_training_needs_no_process_group() -> None:
    assert not tdist.is_initialized()
    q, f = quantizer().train(), latent().requires_grad_()
    f_hat, usages, loss = q(f, ret_usages=True)
    assert torch.allclose(f_hat, q.f_to_idxBl_or_fhat(f, to_fhat=True)[-1], atol=1e-6)
    assert usages is not None and len(usages) == 4 and 0 < usages[-1] <= 100
    assert q.ema_vocab_hit_SV[0].sum() == B and q.record_hit == 4
    (gradient,) = torch.autograd.grad(f_hat.sum(), f, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(f)), "straight through"
    loss.backward()
    assert f.grad is not None and f.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in q.parameters())


def test_counts_are_left_alone_in_eval_mode() -> None:
    q = quantizer().eval()
    q(latent())
    assert q.ema_vocab_hit_SV.abs().max() == 0 and q.record_hit == 0


def test_a_latent_of_another_size_is_refused() -> None:
    with pytest.raises(AssertionError, match="latent"):
        quantizer().f_to_idxBl_or_fhat(torch.zeros(1, 8, 5, 5), to_fhat=False)


# ---------------------------------------------------------------------------------------------------- VQVAE


def test_test_mode_freezes() -> None:
    assert not vae().training and not any(p.requires_grad for p in vae().parameters())
    trainable = vae(test_mode=False)
    assert trainable.training and all(p.requires_grad for p in trainable.parameters())


def test_images_of_tokens_are_the_reconstruction() -> None:
    model, img = vae(), torch.rand(2, 3, 64, 64) * 2 - 1
    reconstructed = model.img_to_reconstructed_img(img)
    decoded = model.idxBl_to_img(model.img_to_idxBl(img), same_shape=True)
    assert len(reconstructed) == 4 and reconstructed[-1].shape == img.shape
    assert all(torch.equal(a, b) for a, b in zip(reconstructed, decoded, strict=True))
    last = model.img_to_reconstructed_img(img, last_one=True)
    assert isinstance(last, Tensor) and torch.equal(last, reconstructed[-1])


def test_growing_images_have_the_size_of_their_token_maps() -> None:
    model = vae()
    tokens = [torch.zeros(1, pn * pn, dtype=torch.long) for pn in PATCH_NUMS]
    assert [img.shape[-1] for img in model.idxBl_to_img(tokens, same_shape=False)] == [16 * pn for pn in PATCH_NUMS]


def test_loading_is_strict_but_for_the_number_of_scales() -> None:
    model, longer = vae(), vae(v_patch_nums=(1, 2, 3, 3, 4))
    model.quantize.ema_vocab_hit_SV.fill_(3.0)
    state = longer.state_dict()
    model.load_state_dict(state, strict=True)
    assert torch.equal(model.quantize.embedding.weight, longer.quantize.embedding.weight)
    assert model.quantize.ema_vocab_hit_SV.unique().tolist() == [3.0]
    assert len(state["quantize.ema_vocab_hit_SV"]) == 5, "the caller's dict was changed"
    with pytest.raises(RuntimeError, match="Unexpected"):
        model.load_state_dict({**state, "extra": torch.zeros(1)}, strict=True)
    del state["encoder.conv_in.weight"]
    with pytest.raises(RuntimeError, match="Missing"):
        model.load_state_dict(state, strict=True)


# ---------------------------------------------------------------------------------------------------- VAR


def forced_logits(model: VAR, label_B: Tensor, tokens: list[Tensor]) -> Tensor:
    return model(label_B, model.vae_quant_proxy[0].idxBl_to_var_input(tokens))


@pytest.mark.parametrize("options", [{}, {"shared_aln": True}, {"attn_l2_norm": True}])
def test_cached_sampling_predicts_what_teacher_forcing_does(options: dict[str, Any]) -> None:
    model, logits, tokens = var(**options), [], []
    hooks = [
        model.head.register_forward_hook(lambda _m, _i, output: logits.append(output.clone())),
        model.vae_quant_proxy[0].embedding.register_forward_pre_hook(lambda _m, inputs: tokens.append(inputs[0])),
    ]
    label_B = torch.tensor([0, 4, 9])
    model.autoregressive_infer_cfg(B, label_B, g_seed=0, top_k=40)
    for hook in hooks:
        hook.remove()
    guided, unguided = torch.cat(logits, dim=1).chunk(2)
    assert not torch.allclose(guided, unguided, atol=0.1), "the label acts"
    with torch.no_grad():
        torch.testing.assert_close(guided, forced_logits(model, label_B, tokens), atol=1e-4, rtol=1e-4)
        no_class = torch.full_like(label_B, 10)
        torch.testing.assert_close(unguided, forced_logits(model, no_class, tokens), atol=1e-4, rtol=1e-4)


def test_a_scale_sees_no_token_of_its_own_or_a_finer_one() -> None:
    model, label_B = var(), torch.tensor([1, 2, 3])
    tokens = [torch.randint(64, (B, pn * pn)) for pn in PATCH_NUMS]
    with torch.no_grad():
        before = forced_logits(model, label_B, tokens)
        for i, end in enumerate(ENDS[:-1]):
            changed = [(idx + 17) % 64 if si == i else idx for si, idx in enumerate(tokens)]
            after = forced_logits(model, label_B, changed)
            torch.testing.assert_close(before[:, :end], after[:, :end], atol=0, rtol=0)
            assert not torch.allclose(before[:, end : ENDS[i + 1]], after[:, end : ENDS[i + 1]], atol=1e-3)


def test_samples_follow_the_seed_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    model = var()
    first, again, other = (model.autoregressive_infer_cfg(B, None, g_seed=seed) for seed in (5, 5, 6))
    assert first.shape == (B, 3, 64, 64) and 0 <= first.min() < first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert capsys.readouterr() == ("", "")


def test_caches_are_released_after_an_exception() -> None:
    model, calls = var(), []

    def fail_at_the_third_scale(_module: nn.Module, _inputs: Any) -> None:
        calls.append(model.blocks[0].attn.cached_k.shape[2])  # type: ignore[union-attr, index]
        if len(calls) == 3:
            raise KeyboardInterrupt

    hook = model.head.register_forward_pre_hook(fail_at_the_third_scale)
    with pytest.raises(KeyboardInterrupt):
        model.autoregressive_infer_cfg(B, 1, g_seed=0)
    hook.remove()
    assert calls == list(ENDS[:3]), "the cache was in use"
    for attention in (block.attn for block in model.blocks):
        assert not attention.caching and attention.cached_k is None and attention.cached_v is None  # type: ignore[union-attr]
    assert torch.equal(model.autoregressive_infer_cfg(B, 1, g_seed=0), var().autoregressive_infer_cfg(B, 1, g_seed=0))


def test_the_tokenizer_is_referred_to_not_owned() -> None:
    model = var()
    assert not any("vae" in name or "quant" in name for name in model.state_dict())
    assert model.vae_quant_proxy[0] is model.vae_proxy[0].quantize
    assert model.rng.device == model.uniform_prob.device == next(model.vae_proxy[0].parameters()).device


@pytest.mark.parametrize("shared_aln", [False, True])
def test_weights_load_strictly(shared_aln: bool) -> None:
    model, copy, other = (var(shared_aln=shared) for shared in (shared_aln, shared_aln, not shared_aln))
    with pytest.raises(RuntimeError, match="Missing"):
        other.load_state_dict(model.state_dict(), strict=True)
    copy.init_weights()
    copy.load_state_dict(model.state_dict(), strict=True)
    for mine, theirs in zip(model.state_dict().values(), copy.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_fresh_weights_are_finite_and_gates_start_small() -> None:
    model = var()
    model.init_weights(init_adaln=0.5, init_adaln_gamma=1e-5, init_head=0.02, init_std=-1)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    gates, others = model.blocks[0].ada_lin[-1].weight.split((128, 256))  # type: ignore[union-attr, index]
    assert gates.std() < 1e-5 < 1e-2 < others.std()


def test_progressive_training_is_refused() -> None:
    model = var()
    model.prog_si = 2
    with pytest.raises(NotImplementedError, match="prog_si"):
        model(torch.tensor([1]), torch.zeros(1, 29, 8))


def test_nothing_deprecated_is_called() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer()(latent(), ret_usages=True)
        model = var()
        forced_logits(model, torch.tensor([1]), [torch.zeros(1, pn * pn, dtype=torch.long) for pn in PATCH_NUMS])
        model.autoregressive_infer_cfg(1, 1, g_seed=0, more_smooth=True)


# ---------------------------------------------------------------------------------------------------- small parts


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}])
def test_the_tightest_filter_leaves_the_likeliest_code(options: dict[str, Any]) -> None:
    logits = torch.randn(2, 5, 64)
    drawn = sample_with_top_k_top_p_(logits.clone(), num_samples=3, **options)
    assert torch.equal(drawn, logits.argmax(-1, keepdim=True).expand(2, 5, 3))


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().view(1, 1, 4)
    sample_with_top_k_top_p_(logits, top_p=0.65)
    assert torch.isfinite(logits).flatten().tolist() == [True, True, False, False]


def test_drop_path_zeroes_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x, drop = torch.ones(4000, 2, 3), DropPath(0.25)
    y = drop(x)
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert torch.equal(y.amin((1, 2)), y.amax((1, 2)))
    assert abs(y.mean().item() - 1) < 0.03
    assert drop.eval()(x) is x
