"""Fast sampling: upstream's images to the bit, stock once it is off, and the repeated work really gone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from students import lively_var
from torch import Tensor
from torch.nn import functional as F

from patches import FastSampling, PatchError, Upstream, load_upstream, patched
from patches.fast_sampling import FastSelfAttention, KVCache, SamplingMemo

SETTINGS: list[dict[str, Any]] = [
    dict(cfg=1.5, top_k=20, top_p=0.96),
    dict(cfg=4.0, top_k=0, top_p=0.0),
    dict(cfg=0.0, top_k=5, top_p=0.5),
    dict(cfg=4.0, top_k=20, top_p=0.9, more_smooth=True),
]


def images_of(var: Any, count: int = 3, **options: Any) -> Tensor:
    return var.autoregressive_infer_cfg(B=count, label_B=torch.arange(count), g_seed=2, **(SETTINGS[0] | options))


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("shared_aln", [False, True])
def test_images_are_upstreams_to_the_bit(upstream: Upstream, shared_aln: bool, options: dict[str, Any]) -> None:
    var = lively_var(upstream, shared_aln=shared_aln)
    for count in (1, 3):
        stock = images_of(var, count, **options)
        with patched(var, FastSampling()):
            assert torch.equal(images_of(var, count, **options), stock)
            assert torch.equal(images_of(var, count, **options), stock)  # nothing of the batch before is left
        assert torch.equal(images_of(var, count, **options), stock)


def test_without_normalised_queries(upstream: Upstream) -> None:
    var = lively_var(upstream, attn_l2_norm=False)
    stock = images_of(var)
    with patched(var, FastSampling()):
        assert torch.equal(images_of(var), stock)


def test_off_is_stock_and_the_state_dict_is_untouched(upstream: Upstream) -> None:
    var, other = lively_var(upstream), lively_var(upstream)
    modules, state = list(var.modules()), {key: value.clone() for key, value in var.state_dict().items()}
    classes, attributes = [type(m) for m in modules], [set(m.__dict__) for m in modules]
    patch = FastSampling()
    patch.apply(var)
    patch.apply(var)  # twice is once
    assert isinstance(var.blocks[0].attn, FastSelfAttention) and not isinstance(other.blocks[0].attn, FastSelfAttention)
    assert all(torch.equal(value, state[key]) for key, value in var.state_dict().items())
    assert var.state_dict().keys() == state.keys()
    images_of(var)
    patch.remove(var)
    assert [type(m) for m in modules] == classes and [set(m.__dict__) for m in modules] == attributes


def test_teacher_forcing_and_its_gradients_are_stock(upstream: Upstream) -> None:
    var = lively_var(upstream).requires_grad_(True)
    inputs = torch.randn(2, var.L - 1, 8, generator=torch.Generator().manual_seed(0))

    def step() -> list[Tensor]:
        var.zero_grad()
        torch.manual_seed(0)
        logits_BLV = var(torch.tensor([1, 2]), inputs)
        F.cross_entropy(logits_BLV.flatten(0, 1), torch.arange(2 * var.L) % 64).backward()
        return [logits_BLV.detach(), *(p.grad.clone() for p in var.parameters() if p.grad is not None)]

    stock = step()
    with patched(var, FastSampling()):
        images_of(var)
        fast = step()
    assert len(stock) == len(fast) and all(torch.equal(a, b) for a, b in zip(stock, fast, strict=True))


def test_each_projection_is_made_once_a_batch(upstream: Upstream) -> None:
    var = lively_var(upstream)
    linears = [module.ada_lin[-1] for module in (*var.blocks, var.head_nm)]
    calls: list[int] = []
    handles = [linear.register_forward_hook(lambda *_: calls.append(1)) for linear in linears]
    images_of(var)
    assert len(calls) == 4 * len(linears)  # stock: at each of four scales
    calls.clear()
    with patched(var, FastSampling()):
        images_of(var)
        images_of(var)
    assert len(calls) == 2 * len(linears)
    for handle in handles:
        handle.remove()


def test_nothing_is_kept_after_a_batch_or_a_failure() -> None:
    var = lively_var(load_upstream())
    with patched(var, FastSampling()):
        images_of(var)
        attention = var.blocks[0].attn
        assert attention.sampling_cache is None and not attention.sampling_memo.sampling
        with pytest.raises(RuntimeError):
            images_of(var, top_k=1000)  # more than the 64 codes: topk fails in the middle of the first step
        for block in var.blocks:
            block.attn.kv_caching(False)
        assert attention.sampling_cache is None and not attention.sampling_memo.sampling


def test_memo_tells_conditions_apart() -> None:
    memo, linear = SamplingMemo(), torch.nn.Linear(2, 2)
    a, b = torch.ones(1, 2), torch.zeros(1, 2)
    memo.begin()
    first = memo.project(linear, a)
    assert memo.project(linear, a) is first
    assert torch.equal(memo.project(linear, b), linear(b)) and not torch.equal(linear(a), linear(b))
    memo.end()
    with torch.no_grad():
        linear.bias.add_(1)
    assert torch.equal(memo.project(linear, a), linear(a))


def test_cache_holds_all_keys_in_order() -> None:
    keys, values = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    cache = KVCache(values[:, :, :1], tokens=6)
    for begin, end in ((0, 1), (1, 3), (3, 6)):
        k, v = cache.append(keys[:, :, begin:end], values[:, :, begin:end])
        assert torch.equal(k, keys[:, :, :end]) and torch.equal(v, values[:, :, :end])


def test_autocast_draws_the_same_images() -> None:
    """Keys cast once are keys cast at every step."""
    var = lively_var(load_upstream())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stock = images_of(var)
        with patched(var, FastSampling()):
            assert torch.equal(images_of(var), stock)


def test_what_is_no_var_is_refused() -> None:
    with pytest.raises(PatchError, match="FastSampling patches a VAR; a Linear has no"):
        FastSampling().apply(torch.nn.Linear(2, 2))


def test_drift_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from patches import submodule_present

    if not submodule_present():
        pytest.skip("submodule var_upstream is not populated: the stand-in is versioned with the patches")
    var = lively_var(load_upstream("submodule"))
    monkeypatch.setattr(FastSelfAttention, "fingerprints", {"kv_caching": "000000000000"})
    with (
        pytest.raises(PatchError, match=r"SelfAttention\.kv_caching .* upstream has drifted"),
        patched(var, FastSampling()),
    ):
        pass
    assert not isinstance(var.blocks[0].attn, FastSelfAttention)
