"""VAR's recipe against upstream's own schedule and parameter filter, and against what it states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import WITHOUT_SUBMODULE, small_vae
from torch import nn

from patches import Upstream, submodule_present
from patches.upstream import import_isolated
from refocus_ext.distill.recipe import (
    WEIGHT_DECAY,
    cosine_weight_decay,
    final_lr_factor,
    final_weight_decay,
    lin0,
    set_lr_and_decay,
    warmup_steps,
    weight_decay_groups,
)

needs_submodule = pytest.mark.skipif(not submodule_present(), reason=WITHOUT_SUBMODULE)


def small_var(upstream: Upstream, **options: Any) -> Any:
    return upstream.build_var(small_vae(upstream), depth=2, num_classes=5, **options)


def optimizer(groups: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)


@needs_submodule
@pytest.mark.parametrize(("depth", "steps", "warmup"), [(16, 400, 8), (24, 1000, 20), (30, 77, 1), (36, 50, 0)])
def test_schedules_equal_upstreams_at_every_step(depth: int, steps: int, warmup: int) -> None:
    annealing = import_isolated("utils.lr_control").lr_wd_annealing
    stock, ours = ([{"params": [nn.Parameter(torch.zeros(2))], "wd_sc": sc} for sc in (1.0, 0.0)] for _ in range(2))
    theirs, own = optimizer(stock), optimizer(ours)
    end, wd_end = final_lr_factor(depth), final_weight_decay(depth)
    for step in range(steps):
        annealing("lin0", theirs, 1e-4, WEIGHT_DECAY, wd_end, step, warmup, steps, wp0=0.005, wpe=end)
        set_lr_and_decay(own, lin0(step, steps, warmup, end) * 1e-4, cosine_weight_decay(step, steps, end=wd_end))
        for one, other in zip(theirs.param_groups, own.param_groups, strict=True):
            assert other["lr"] == pytest.approx(one["lr"], rel=1e-12), step
            assert other["weight_decay"] == pytest.approx(one["weight_decay"], rel=1e-12), step


@needs_submodule
@pytest.mark.parametrize("shared_aln", [False, True])
def test_groups_equal_upstreams(shared_aln: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from patches import load_upstream

    control = import_isolated("utils.lr_control")
    monkeypatch.setattr(control, "print", lambda *_, **__: None, raising=False)  # upstream's print takes force=True
    var = small_var(load_upstream("submodule"), shared_aln=shared_aln)
    words = "cls_token start_token task_token cfg_uncond pos_embed pos_1LC pos_start start_pos lvl_embed gamma beta"
    keys = {*words.split(), "ada_gss", "moe_bias", "scale_mul"}
    _, _, groups = control.filter_params(var, nowd_keys=keys)
    theirs = {group["wd_sc"]: [id(p) for p in group["params"]] for group in groups}
    ours = {group["wd_sc"]: [id(p) for p in group["params"]] for group in weight_decay_groups(var.named_parameters())}
    assert ours == theirs


@pytest.mark.parametrize("shared_aln", [False, True])
def test_which_weights_of_a_var_decay(upstream: Upstream, shared_aln: bool) -> None:
    var = small_var(upstream, shared_aln=shared_aln)
    decayed, others = weight_decay_groups(var.named_parameters())
    assert (decayed["wd_sc"], others["wd_sc"]) == (1, 0)
    names = {id(parameter): name for name, parameter in var.named_parameters()}
    without = {names[id(parameter)] for parameter in others["params"]}
    assert {"pos_start", "pos_1LC", "lvl_embed.weight", "blocks.0.attn.scale_mul_1H11", "head.bias"} <= without
    assert ("blocks.1.ada_gss" in without) == shared_aln
    with_decay = {names[id(parameter)] for parameter in decayed["params"]}
    assert {"class_emb.weight", "word_embed.weight", "head.weight", "blocks.0.attn.mat_qkv.weight"} <= with_decay
    assert len(without) + len(with_decay) == len(names)


def test_a_frozen_parameter_is_refused_and_empty_groups_left_out() -> None:
    layer = nn.Linear(2, 2)
    assert [group["wd_sc"] for group in weight_decay_groups([("bias", layer.bias)])] == [0.0]
    layer.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="'weight' is frozen"):
        weight_decay_groups(layer.named_parameters())


def test_lin0_starts_low_stays_at_the_peak_and_ends_at_its_end() -> None:
    steps, warmup = 2020, 20
    rates = [lin0(step, steps, warmup, end=0.1) for step in range(steps)]
    assert rates[0] == 0.005 and rates[warmup] == 1 and max(rates) == 1
    assert rates[10] == pytest.approx(0.005 + 0.995 / 2)
    assert rates[warmup : warmup + 100] == [1] * 100 and rates[warmup + 101] < 1
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert max(abs(a - b) for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False)) < 1e-3, "no jump"


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 3)])
def test_tiny_runs_do_not_divide_by_zero(steps: int, warmup: int) -> None:
    for step in range(steps):
        assert 0 < lin0(step, steps, warmup, end=0.1) <= 1
        assert cosine_weight_decay(step, steps, end=0.08) in (
            pytest.approx(0.05),
            pytest.approx(0.08),
            pytest.approx(0.065),
        )


def test_what_depends_on_depth() -> None:
    assert [final_lr_factor(depth) for depth in (12, 16, 20, 24, 30, 36)] == [0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    assert [final_weight_decay(depth) for depth in (16, 20, 24, 30, 36)] == [0.05, 0.05, 0.05, 0.08, 0.08]
    assert warmup_steps(400_000) == 8000


def test_weight_decay_is_a_half_cosine() -> None:
    assert cosine_weight_decay(0, 101, 0.05, 0.08) == 0.05
    assert cosine_weight_decay(50, 101, 0.05, 0.08) == pytest.approx(0.065)
    assert cosine_weight_decay(100, 101, 0.05, 0.08) == pytest.approx(0.08)
