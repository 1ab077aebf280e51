"""Block-causal attention without the dense mask: equal to upstream's training pass, and nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import PATCH_NUMS, WITHOUT_SUBMODULE, small_vae
from torch import Tensor, nn
from torch.nn import functional as F

from patches import PatchError, Upstream, load_upstream, patched, submodule_present
from patches.block_causal import BlockCausal, BlockCausalSelfAttention, Group, block_causal_attention, scale_groups
from patches.instance import fingerprint

BEGIN_ENDS = [(0, 1), (1, 5), (5, 14), (14, 30)]
L = 30
EVERY_GROUPING = pytest.mark.parametrize("groups", [None, 1, 2, 3, 4])


def lively_var(upstream: Upstream, **options: Any) -> Any:
    """A tiny VAR whose attention acts on its logits (VAR's own gates begin at 1e-3)."""
    var = upstream.build_var(small_vae(upstream), **({"depth": 2, "num_classes": 5} | options))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in var.parameters():
            deviation = 0.1 if parameter.ndim == 2 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * deviation)
    return var


def tokens() -> list[Tensor]:
    draw = torch.Generator().manual_seed(4)
    return [torch.randint(64, (2, pn * pn), generator=draw) for pn in PATCH_NUMS]


@torch.no_grad()
def var_input(var: Any) -> Tensor:
    return var.vae_quant_proxy[0].idxBl_to_var_input(tokens())


def teacher_forced(var: Any) -> Tensor:
    torch.manual_seed(0)  # label drop and DropPath
    return var(torch.tensor([1, 3]), var_input(var))


def step(var: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and every parameter's gradient of VAR's loss."""
    var.zero_grad()
    logits_BLV = teacher_forced(var)
    F.cross_entropy(logits_BLV.flatten(0, 1), torch.cat(tokens(), dim=1).flatten()).backward()
    return logits_BLV.detach(), {name: p.grad.clone() for name, p in var.named_parameters() if p.grad is not None}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-3))


# ------------------------------------------------------------------------------------------------ the split


def test_groups_cover_the_tokens_and_only_the_first_may_be_masked() -> None:
    assert scale_groups(BEGIN_ENDS) == tuple(Group(begin, end, False) for begin, end in BEGIN_ENDS)
    assert scale_groups(BEGIN_ENDS, 1) == (Group(0, 30, True),)
    assert scale_groups(BEGIN_ENDS, 3) == (Group(0, 5, True), Group(5, 14, False), Group(14, 30, False))
    assert scale_groups(BEGIN_ENDS, 9) == scale_groups(BEGIN_ENDS, 4) == scale_groups(BEGIN_ENDS)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="at least one group"):
            BlockCausal(wrong)


@EVERY_GROUPING
def test_attention_equals_masked_softmax_written_out(groups: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, L, 4, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(3))
    scale_L = torch.cat([torch.full((end - begin,), i) for i, (begin, end) in enumerate(BEGIN_ENDS)])
    hidden_LL = scale_L[:, None] < scale_L[None, :]
    mask = torch.zeros(L, L, dtype=torch.float64).masked_fill(hidden_LL, -torch.inf)[None, None]
    scores = (q @ k.transpose(-2, -1) * 0.3).masked_fill(hidden_LL, -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2)
    found = block_causal_attention(q, k, v, mask, scale_groups(BEGIN_ENDS, groups), 0.3)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    ours = torch.autograd.grad((found * weight).sum(), (q, k, v))
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weight).sum(), (q, k, v)))


# ------------------------------------------------------------------------------------------------ as upstream


@pytest.mark.parametrize("l2_norm", [False, True])
@EVERY_GROUPING
def test_self_attention_is_upstreams_in_double_precision(upstream: Upstream, groups: int | None, l2_norm: bool) -> None:
    var = lively_var(upstream, attn_l2_norm=l2_norm)
    attention = var.blocks[1].attn.double()
    if l2_norm:
        attention.scale_mul_1H11.data[:, 0] = 5.0  # beyond the limit of log 100: upstream clamps it
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(2, L, var.C, generator=draw, dtype=torch.float64) for _ in range(2))

    def run() -> tuple[Tensor, ...]:
        leaves = (x.requires_grad_(), *attention.parameters())
        out = attention(x, var.attn_bias_for_masking.double())
        return out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)

    expected = run()
    with patched(var, BlockCausal(groups)):
        torch.testing.assert_close(run(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("l2_norm", "shared_aln"), [(True, False), (False, False), (True, True)])
@EVERY_GROUPING
def test_training_pass_and_gradients_are_upstreams(
    upstream: Upstream, groups: int | None, l2_norm: bool, shared_aln: bool
) -> None:
    var = lively_var(upstream, attn_l2_norm=l2_norm, shared_aln=shared_aln).train()
    for block in var.blocks[1:]:
        block.drop_path.drop_prob = 0.5
    logits, gradients = step(var)
    with patched(var, BlockCausal(groups)):
        ours, own_gradients = step(var)
    assert relative_error(ours, logits) < 1e-6
    assert own_gradients.keys() == gradients.keys()
    assert (
        relative_error(*(torch.cat([g.flatten() for g in side.values()]) for side in (own_gradients, gradients))) < 1e-6
    )
    for name, gradient in gradients.items():  # some are small sums of large terms that cancel: q_bias, scale_mul
        assert relative_error(own_gradients[name], gradient) < 5e-6, name


def test_a_later_scale_cannot_be_seen(upstream: Upstream) -> None:
    """Changing the input of scale i leaves the logits of the scales before it, and changes its own."""
    var = lively_var(upstream).eval()
    var.cond_drop_rate = 0.0
    BlockCausal(3).apply(var)
    x_BLCv, label = var_input(var), torch.tensor([1, 3])
    before = var(label, x_BLCv)
    for begin, end in BEGIN_ENDS[1:]:
        changed = x_BLCv.clone()
        changed[:, begin - 1 : end - 1] += 1
        after = var(label, changed)
        assert torch.equal(after[:, :begin], before[:, :begin])
        assert not torch.allclose(after[:, begin:end], before[:, begin:end])


def test_training_pass_under_autocast(upstream: Upstream) -> None:
    var = lively_var(upstream).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = teacher_forced(var)
        with patched(var, BlockCausal()):
            found = teacher_forced(var)
    assert found.dtype == expected.dtype
    assert (found - expected).norm() / expected.norm() < 2e-2


@EVERY_GROUPING
def test_sampling_is_stock_to_the_bit(upstream: Upstream, groups: int | None) -> None:
    var = lively_var(upstream).eval()

    def sample() -> Tensor:
        return var.autoregressive_infer_cfg(B=2, label_B=torch.tensor([1, 2]), g_seed=5, top_k=20, top_p=0.9)

    stock = sample()
    with patched(var, BlockCausal(groups)):
        assert torch.equal(sample(), stock)
        assert not var.blocks[0].attn.caching


def test_off_is_upstream_to_the_bit_and_the_state_dict_is_untouched(upstream: Upstream) -> None:
    var = lively_var(upstream).eval()
    before, attributes, stock = step(var), set(var.blocks[0].attn.__dict__), type(var.blocks[0].attn)
    keys = list(var.state_dict())
    with patched(var, BlockCausal()):
        assert all(isinstance(block.attn, BlockCausalSelfAttention) for block in var.blocks)
        assert list(var.state_dict()) == keys
        lively_var(upstream).load_state_dict(var.state_dict(), strict=True)
        assert type(lively_var(upstream).blocks[0].attn) is stock
    assert type(var.blocks[0].attn) is stock and set(var.blocks[0].attn.__dict__) == attributes
    after = step(var)
    assert torch.equal(after[0], before[0])
    assert all(torch.equal(after[1][name], gradient) for name, gradient in before[1].items())


def test_twice_is_once_and_the_last_grouping_counts(upstream: Upstream) -> None:
    var = lively_var(upstream)
    BlockCausal(2).apply(var)
    once = type(var.blocks[1].attn)
    BlockCausal(4).apply(var)
    assert type(var.blocks[1].attn) is once and len(var.blocks[1].attn.block_causal_groups) == 4
    BlockCausal().remove(var)
    BlockCausal().remove(var)
    assert type(var.blocks[1].attn) is upstream.SelfAttention


def test_the_dense_mask_is_not_read_where_each_scale_has_its_own_call(upstream: Upstream) -> None:
    var = lively_var(upstream).eval()
    BlockCausal(None).apply(var)
    attention, x = var.blocks[0].attn, torch.randn(2, L, var.C)
    garbage = torch.full((1, 1, L, L), torch.nan)
    assert torch.equal(attention(x, garbage), attention(x, var.attn_bias_for_masking))


# ------------------------------------------------------------------------------------------------ refusals


def test_progressive_training_and_foreign_masks_are_refused(upstream: Upstream) -> None:
    var = lively_var(upstream)
    BlockCausal().apply(var)
    attention, x = var.blocks[0].attn, torch.randn(2, L, var.C)
    with pytest.raises(ValueError, match=r"all 30 tokens and their mask \(1, 1, 30, 30\); it got 30 tokens"):
        attention(x, var.attn_bias_for_masking[:, :, :14, :14])
    with pytest.raises(ValueError, match="it got 14 tokens"):
        attention(x[:, :14], var.attn_bias_for_masking)
    if upstream.kind == "submodule":  # the stand-in has no progressive training
        var.prog_si = 2
        with pytest.raises(ValueError, match="progressive training needs the dense mask"):
            var(torch.tensor([1, 3]), var_input(var)[:, :13])


def test_dropout_is_refused(upstream: Upstream) -> None:
    var = lively_var(upstream)
    BlockCausal().apply(var)
    var.train().blocks[1].attn.attn_drop = 0.1
    with pytest.raises(ValueError, match=r"no dropout; attn_drop is 0\.1"):
        teacher_forced(var)
    BlockCausal().remove(var)
    with pytest.raises(PatchError, match="this VAR has attn_drop_rate"):
        BlockCausal().apply(var)
    assert type(var.blocks[0].attn) is upstream.SelfAttention, "nothing was patched"


def test_another_mask_in_the_model_is_refused(upstream: Upstream) -> None:
    var = lively_var(upstream)
    var.attn_bias_for_masking[0, 0, 2, 3] = -torch.inf
    with pytest.raises(PatchError, match="not block-causal over its patch_nums"):
        BlockCausal().apply(var)


def test_foreign_models_are_refused() -> None:
    with pytest.raises(PatchError, match="Linear has no self-attention"):
        BlockCausal().apply(nn.Linear(2, 2))


@pytest.mark.skipif(not submodule_present(), reason=WITHOUT_SUBMODULE)
def test_fingerprint_is_that_of_the_pinned_upstream() -> None:
    stock = load_upstream("submodule").SelfAttention
    for name, expected in BlockCausalSelfAttention.fingerprints.items():
        assert fingerprint(getattr(stock, name)) == expected, name
