"""The teacher: equal to the student at first, blind where it must be, and without any gradient into the VAR.

Weights are drawn large enough that every part acts on the result (VAR's own initial gates of 1e-3 would hide its blocks).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import PATCH_NUMS, WITHOUT_SUBMODULE, small_vae
from torch import Tensor, nn

from patches import PatchError, Upstream, load_upstream, patched, submodule_present
from patches.instance import fingerprint
from patches.teacher_block import RecordedBlock, RecordedVAR, Recording, SharedDropPath
from refocus_ext.distill.teacher.alias_gate import (
    MEAN_BATCHES,
    AliasEmbedding,
    AliasGateCrossAttention,
    EmbeddedAliases,
    cell_positions,
)
from refocus_ext.distill.teacher.cost import teacher_overhead
from refocus_ext.distill.teacher.geometry import TeacherGeometry, alias_visibility
from refocus_ext.distill.teacher.interface import TeacherOverhead
from refocus_ext.distill.teacher.shared_weights import Teacher, TeacherOutput

B, CODE, CLASSES, VOCAB = 6, 5, 7, 64
GRIDS, STATES = (1, 2), (0, 1, 1, 2)  # of the scales 1, 2, 3, 4: pyramid of 64 px, K = 3, alias stride 16
needs_submodule = pytest.mark.skipif(not submodule_present(), reason=WITHOUT_SUBMODULE)
MODES = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


def geometry(**fields: Any) -> TeacherGeometry:
    base: dict[str, Any] = dict(width=64, code_dim=CODE, grids=GRIDS, patch_nums=PATCH_NUMS, states=STATES)
    return TeacherGeometry(**(base | fields))


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(noise / parameter[0].numel() ** 0.5 if parameter.ndim == 2 else 0.2 * noise)


def build_var(upstream: Upstream, **options: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(depth=4, embed_dim=64, num_heads=2, num_classes=CLASSES)
    var = upstream.build_var(small_vae(upstream), **(settings | options))
    draw_weights(var)
    for i, block in enumerate(var.blocks):  # lively stochastic depth; the first block keeps its Identity
        if i:
            block.drop_path.drop_prob = 0.25
    return var


def build_teacher(drawn: bool = True, **fields: Any) -> Teacher:
    torch.manual_seed(1)
    teacher = Teacher(geometry(**fields))
    if drawn:
        draw_weights(teacher, seed=3)
    return teacher


@pytest.fixture
def var(upstream: Upstream) -> Any:
    return build_var(upstream)


def batch(seed: int = 4) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Labels, teacher-forcing input and alias code vectors."""
    generator = torch.Generator().manual_seed(seed)
    x_BLC = torch.randn(B, sum(pn * pn for pn in PATCH_NUMS) - 1, 8, generator=generator)
    label_B = torch.randint(CLASSES, (B,), generator=generator)
    return label_B, x_BLC, [torch.randn(B, grid * grid, CODE, generator=generator) for grid in GRIDS]


def seeded(function: Callable[..., Any], *args: Any, seed: int = 11) -> Any:
    torch.manual_seed(seed)
    return function(*args)


def scales(x_BLC: Tensor) -> Iterator[Tensor]:
    """(B,l,...) of each scale."""
    yield from x_BLC.split([pn * pn for pn in PATCH_NUMS], dim=1)


def grads(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_grads(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    for name, grad in expected.items():
        assert grad is not None and grad.any(), f"no gradient reached {name}, the comparison would be void"
        other = found[name]
        assert other is not None and torch.equal(other, grad), name


# ------------------------------------------------------------------------------------------------ the student's pass

KINDS = pytest.mark.parametrize(
    "options",
    [{}, {"shared_aln": True}, {"attn_l2_norm": False}, {"shared_aln": True, "attn_l2_norm": False}],
    ids=["own aln", "shared aln", "no l2 norm", "shared aln, no l2 norm"],
)


@KINDS
@pytest.mark.parametrize("blocks", [2, 4])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@MODES
def test_student_is_stock_and_an_untrained_teacher_equals_it(
    upstream: Upstream, options: dict[str, Any], blocks: int, bf16: bool, train: bool
) -> None:
    """Logits, gradients and random numbers are those of `var(label_B, x)`; the teacher's first logits are the student's."""
    var = build_var(upstream, **options).train(train)
    label_B, x_BLC, alias_K = batch()
    teacher = build_teacher(drawn=False, blocks=blocks).train(train)
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        stock, after = seeded(lambda: (var(label_B, x_BLC), torch.rand(1)))
        out, ours_after = seeded(lambda: (teacher(var, label_B, x_BLC, alias_K), torch.rand(1)))
    assert torch.equal(out.student_logits, stock) and torch.equal(after, ours_after)
    assert torch.equal(out.teacher_logits, stock)
    assert len(out.student_features) == len(out.teacher_features) == blocks
    for student, taught in zip(out.student_features, out.teacher_features, strict=True):
        assert student.dtype == taught.dtype and torch.equal(student, taught)
    stock.square().mean().backward()
    expected = grads(var)
    var.zero_grad(set_to_none=True)
    out.student_logits.square().mean().backward()
    assert_same_grads(grads(var), expected)
    assert all(grad is None for grad in grads(teacher).values())


def test_a_recording_var_is_stock_and_leaves_no_trace(var: Any) -> None:
    label_B, x_BLC, alias_K = batch()
    stock, classes, keys = (
        seeded(var, label_B, x_BLC),
        [type(module) for module in var.modules()],
        list(var.state_dict()),
    )
    teacher = build_teacher()
    teacher(var, label_B, x_BLC, alias_K)
    assert [type(module) for module in var.modules()] == classes and "teacher_tape" not in var.__dict__
    with patched(var, Recording(2)):  # on for a whole run, without a tape
        assert [type(host).__mro__[1] for host in (var, var.blocks[-1])] == [RecordedVAR, RecordedBlock]
        assert list(var.state_dict()) == keys
        assert torch.equal(seeded(var, label_B, x_BLC), stock)
        out = seeded(teacher, var, label_B, x_BLC, alias_K)
        assert torch.equal(out.student_logits, stock)
        assert type(var).__mro__[1] is RecordedVAR and var.teacher_tape is None, "the run's patch outlives a step's"
    assert [type(module) for module in var.modules()] == classes


def test_features_are_the_outputs_of_the_last_blocks(var: Any) -> None:
    label_B, x_BLC, alias_K = batch()
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: seen.append(out)) for block in var.blocks[-2:]]
    out = seeded(build_teacher(), var, label_B, x_BLC, alias_K)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2, "the teacher's pass must not run the student's hooks (DDP, FSDP) again"
    assert all(a is b for a, b in zip(out.student_features, seen, strict=True))


# ------------------------------------------------------------------------------------------------ shared masks


def test_shared_drop_path_draws_once_and_as_stock(var: Any) -> None:
    drop, branch = type(var.blocks[-1].drop_path)(0.5), torch.randn(16, 3, 4)
    for dtype in (torch.float32, torch.bfloat16):
        x = branch.to(dtype)
        stock, after = seeded(lambda x=x: (drop(x), torch.rand(1)))
        shared = SharedDropPath(drop)
        first, ours_after = seeded(lambda x=x, shared=shared: (shared(x), torch.rand(1)))
        assert torch.equal(first, stock) and torch.equal(after, ours_after)
        assert torch.equal(shared(x), stock) and 0 < int((stock == 0).all((1, 2)).sum()) < 16
    drop.eval()
    assert SharedDropPath(drop)(branch) is branch and SharedDropPath(nn.Identity())(branch) is branch


def test_both_passes_drop_the_same_branches(var: Any) -> None:
    """A sample whose branches of both doubled blocks are dropped differs by the cross-attention's own update alone."""
    var.train()
    label_B, x_BLC, alias_K = batch()
    teacher = build_teacher()
    tape = seeded(teacher.observe, var, label_B, x_BLC)
    factors = [drop.factor_B11 for record in tape.blocks for drop in (record.drop_attn, record.drop_ffn)]
    assert all(factor is not None and set((factor * 3).unique().tolist()) <= {0.0, 4.0} for factor in factors)
    before = torch.get_rng_state()
    features = teacher.teach(var, tape, alias_K)
    assert torch.equal(torch.get_rng_state(), before), "the teacher's pass draws nothing"
    for record in tape.blocks:
        for drop in (record.drop_attn, record.drop_ffn):
            drop.factor_B11 = torch.zeros(B, 1, 1)
    features = teacher.teach(var, tape, alias_K)
    expected = tape.blocks[0].mid_BLC
    for cross, feature in zip(teacher.cross, features, strict=True):
        expected = cross(expected, teacher.embed(alias_K), teacher.visible_LN)
        assert torch.equal(feature, expected)


def test_teacher_pass_is_the_formula(var: Any) -> None:
    """Slow reference: the last two blocks by their own parts, cross-attention by its definition in float64."""
    var.eval()
    label_B, x_BLC, alias_K = batch()
    teacher = build_teacher()
    teacher.embed.follow(torch.randn(teacher.embed.mean_TC.shape, generator=torch.Generator().manual_seed(5)))
    inputs: list[Any] = []
    hook = var.blocks[2].register_forward_pre_hook(lambda _m, _a, kwargs: inputs.append(kwargs), with_kwargs=True)
    out = seeded(teacher, var, label_B, x_BLC, alias_K)
    hook.remove()
    x, cond, bias = inputs[0]["x"], inputs[0]["cond_BD"], inputs[0]["attn_bias"]
    aliases = teacher.embed(alias_K)
    assert torch.equal(aliases.value_BTC, aliases.key_BTC - teacher.embed.mean_TC)
    for block, cross, feature in zip(var.blocks[2:], teacher.cross, out.teacher_features, strict=True):
        g1, g2, s1, s2, b1, b2 = block.ada_lin(cond).view(B, 1, 6, 64).unbind(2)
        x = x + g1 * block.attn(block.ln_wo_grad(x) * (1 + s1) + b1, bias)
        x = reference_cross(cross, x, aliases, alias_visibility(teacher.geometry))  # type: ignore[arg-type]
        x = x + g2 * block.ffn(block.ln_wo_grad(x) * (1 + s2) + b2)
        assert torch.allclose(feature, x, atol=2e-5, rtol=1e-4)


def reference_cross(cross: AliasGateCrossAttention, x: Tensor, aliases: EmbeddedAliases, visible_LT: Tensor) -> Tensor:
    seen = cross.norm(x).double()
    w = {name: p.double() for name, p in cross.named_parameters()}
    logits = (seen @ w["to_q.weight"].T) @ (aliases.key_BTC.double() @ w["to_k.weight"].T).transpose(1, 2)
    null = seen @ w["to_q.weight"].T @ w["null_key"]
    scores = (
        torch.cat((null[..., None], logits.masked_fill(~visible_LT, -torch.inf)), -1) / cross.to_q.out_features**0.5
    )
    attended = scores.softmax(-1)[..., 1:] @ (aliases.value_BTC.double() @ w["to_v.weight"].T)
    gate = torch.sigmoid(seen @ w["to_gate.weight"].T + w["to_gate.bias"])
    return (x + gate * (attended @ w["to_out.weight"].T)).float()


# ------------------------------------------------------------------------------------------------ what an image says


def test_aliases_that_every_image_has_teach_nothing(var: Any) -> None:
    """A teacher with drawn weights, shown what it always sees, is the student to the bit; shown anything else it is not."""
    label_B, x_BLC, alias_K = batch()
    teacher, usual_K = build_teacher(), [alias[:1].expand(B, -1, -1) for alias in alias_K]
    for _ in range(3):
        teacher.embed.follow(teacher.embed.mean(usual_K))
    # a mean of equal rows may be off in its last bits
    assert torch.allclose(teacher.embed.mean_TC, teacher.embed(usual_K).key_BTC[0], atol=1e-6)
    with torch.no_grad():
        teacher.embed.mean_TC.copy_(teacher.embed(usual_K).key_BTC[0])
    out = seeded(teacher, var, label_B, x_BLC, usual_K)
    assert torch.equal(out.teacher_logits, out.student_logits)
    other = seeded(teacher, var, label_B, x_BLC, alias_K)
    assert not torch.equal(other.teacher_logits, other.student_logits)


def test_whole_values_are_the_embeddings_of_eq_10() -> None:
    """Whatever the mean is, which is then followed all the same."""
    geometry = TeacherGeometry(64, 4, (1, 2), PATCH_NUMS, (0, 1, 1, 2), values="whole")
    embed = AliasEmbedding(geometry)
    embed.mean_TC.normal_(generator=torch.Generator().manual_seed(1))
    alias_K = [torch.randn(2, tokens, geometry.code_dim) for tokens in geometry.tokens]
    aliases = embed(alias_K)
    assert torch.equal(aliases.value_BTC, aliases.key_BTC)
    assert TeacherGeometry.from_dict(geometry.to_dict()) == geometry
    with pytest.raises(ValueError, match="unknown alias values 'all'; choose one of centred, whole"):
        TeacherGeometry(64, values="all")


def test_running_mean_is_plain_at_first_then_exponential() -> None:
    embed = AliasEmbedding(geometry())
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(MEAN_BATCHES + 5, *embed.mean_TC.shape, generator=generator)
    for i, mean_TC in enumerate(means[:MEAN_BATCHES], start=1):
        embed.follow(mean_TC)
        assert torch.allclose(embed.mean_TC, means[:i].mean(0), atol=1e-5)
    expected = embed.mean_TC.clone()
    for mean_TC in means[MEAN_BATCHES:]:
        embed.follow(mean_TC)
        expected = (1 - 1 / MEAN_BATCHES) * expected + mean_TC / MEAN_BATCHES
        assert torch.allclose(embed.mean_TC, expected, atol=1e-6)


def test_only_follow_moves_the_mean_and_it_travels_with_the_weights(var: Any) -> None:
    label_B, x_BLC, alias_K = batch()
    teacher = build_teacher().train()
    seeded(teacher, var, label_B, x_BLC, alias_K)
    mean_TC = teacher.embed.mean(alias_K)
    assert not teacher.embed.mean_TC.any() and mean_TC.any() and not mean_TC.requires_grad
    assert torch.allclose(mean_TC, teacher.embed(alias_K).key_BTC.mean(0))
    teacher.embed.follow(mean_TC)
    again = build_teacher(drawn=False)
    again.load_state_dict(teacher.state_dict())
    assert torch.equal(again.embed.mean_TC, mean_TC) and int(again.embed.batches) == 1


# ------------------------------------------------------------------------------------------------ who sees what


def test_visible_states_of_the_paper() -> None:
    assert geometry().visible_states == (0, 1, 2, 2)
    assert geometry(mask="privileged").visible_states == (1, 2, 2, 2)
    assert geometry(alias_scales=2).visible_states == (0, 0, 2, 2)
    assert TeacherGeometry(1024).visible_states == (0, 1, 1, 2, 2, 3, 3, 3, 3, 3)
    assert TeacherGeometry(1024, mask="privileged").visible_states == (1, 1, 2, 2, 3, 3, 3, 3, 3, 3)
    assert alias_visibility(TeacherGeometry(1024)).shape == (680, 336)
    assert TeacherGeometry(768).heads == 6 and TeacherGeometry(64 * 13).heads == 4


@pytest.mark.parametrize("mask", ["causal", "privileged"])
@pytest.mark.parametrize("alias_scales", [None, 2])
def test_hidden_alias_tokens_change_nothing_and_visible_ones_do(var: Any, mask: str, alias_scales: int | None) -> None:
    """Each state x each scale, through the last block's features and the logits; the whole image at once, all heads."""
    var.eval()
    teacher = build_teacher(mask=mask, alias_scales=alias_scales)
    label_B, x_BLC, alias_K = batch()
    tape = seeded(teacher.observe, var, label_B, x_BLC)

    def look(alias_K: list[Tensor]) -> tuple[Tensor, Tensor]:
        feature = teacher.teach(var, tape, alias_K)[-1]
        return feature, teacher.logits(var, tape, feature)

    before = look(alias_K)
    for k, (grid, alias) in enumerate(zip(GRIDS, alias_K, strict=True)):
        for cell in range(grid * grid):
            moved = alias.clone()
            moved[:, cell] += 3 * torch.randn(B, CODE, generator=torch.Generator().manual_seed(cell))
            after = look([moved if i == k else other for i, other in enumerate(alias_K)])
            for i, (g, last) in enumerate(zip(STATES, (None, *STATES[:-1]), strict=True)):
                sees = k <= g if mask == "privileged" else last is not None and k <= last
                sees = sees and i >= len(STATES) - (alias_scales or len(STATES))
                for old, new in zip(before, after, strict=True):
                    old_l, new_l = list(scales(old))[i], list(scales(new))[i]
                    changed = (old_l != new_l).any(-1)
                    assert changed.all() if sees else not changed.any(), (k, cell, i)


@MODES
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_query_that_sees_no_alias_is_the_student_always(var: Any, train: bool, bf16: bool) -> None:
    """To the bit with any weights of the teacher; the queries that see something differ."""
    var.train(train)
    for alias_scales, blind in ((None, 1), (2, 2), (1, 3)):
        teacher = build_teacher(alias_scales=alias_scales)
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            out = seeded(teacher, var, *batch())
        pairs = [
            (out.student_logits, out.teacher_logits),
            *zip(out.student_features, out.teacher_features, strict=True),
        ]
        for student, taught in pairs:
            for i, (own, other) in enumerate(zip(scales(student), scales(taught), strict=True)):
                assert torch.equal(own, other) == (i < blind), (alias_scales, i)


def test_a_blind_query_stays_the_students_through_training(var: Any) -> None:
    """Thirty steps of the teacher's own cross-entropy: it learns from the alias tokens, the first scale never moves."""
    var.eval()
    teacher = build_teacher(drawn=False)
    label_B, x_BLC, alias_K = batch()
    target_BL = torch.randint(VOCAB, (B, x_BLC.shape[1] + 1), generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        out = seeded(teacher, var, label_B, x_BLC, alias_K)
        loss = nn.functional.cross_entropy(out.teacher_logits.flatten(0, 1), target_BL.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert torch.equal(out.teacher_logits[:, :1], out.student_logits[:, :1])
    assert losses[-1] < losses[0] - 0.1
    assert (out.teacher_logits[:, 1:] != out.student_logits[:, 1:]).any(-1).all()
    assert all(grad is not None and grad.any() for grad in grads(teacher).values())


def test_gate_is_within_0_and_1_and_starts_at_a_half() -> None:
    x = 50 * torch.randn(2, 3, 64)
    assert (build_teacher(drawn=False).cross[0].gate(x) == 0.5).all()  # type: ignore[operator]
    for cross in build_teacher().cross:
        gate = cross.gate(x)  # type: ignore[operator]
        assert gate.shape == x.shape and gate.min() >= 0 and gate.max() <= 1 and gate.std() > 0.05


# ------------------------------------------------------------------------------------------------ gradients


def losses_of(out: TeacherOutput, target_BL: Tensor) -> dict[str, Tensor]:
    cross_entropy = lambda logits: nn.functional.cross_entropy(logits.flatten(0, 1), target_BL.flatten())  # noqa: E731
    feature = sum((taught - 1).square().mean() for taught in out.teacher_features)
    return {"student": cross_entropy(out.student_logits), "teacher": cross_entropy(out.teacher_logits) + feature}


@KINDS
@MODES
def test_gradients_are_isolated_both_ways(upstream: Upstream, options: dict[str, Any], train: bool) -> None:
    """The teacher's loss leaves None, not merely zero, in the VAR, and the student's gradients keep their bits."""
    var, teacher = build_var(upstream, **options).train(train), build_teacher().train(train)
    label_B, x_BLC, alias_K = batch()
    target_BL = torch.randint(VOCAB, (B, x_BLC.shape[1] + 1), generator=torch.Generator().manual_seed(5))
    alias_K = [alias.requires_grad_() for alias in alias_K]
    losses = losses_of(seeded(teacher, var, label_B, x_BLC, alias_K), target_BL)
    losses["teacher"].backward(retain_graph=True)
    assert all(grad is None for grad in grads(var).values()) and all(alias.grad is None for alias in alias_K)
    assert all(grad is not None and grad.any() for grad in grads(teacher).values())
    teacher.zero_grad(set_to_none=True)
    losses["student"].backward()
    assert all(grad is None for grad in grads(teacher).values())
    var.zero_grad(set_to_none=True)
    stock = seeded(var, label_B, x_BLC)
    nn.functional.cross_entropy(stock.flatten(0, 1), target_BL.flatten()).backward()
    expected = grads(var)
    var.zero_grad(set_to_none=True)
    losses = losses_of(seeded(teacher, var, label_B, x_BLC, alias_K), target_BL)
    (losses["student"] + losses["teacher"]).backward()
    assert_same_grads(grads(var), expected)


def test_feature_loss_trains_the_student_alone(var: Any) -> None:
    teacher = build_teacher()
    out = seeded(teacher, var, *batch())
    pairs = zip(out.student_features, out.teacher_features, strict=True)
    sum((own - taught.detach()).square().mean() for own, taught in pairs).backward()
    assert all(grad is None for grad in grads(teacher).values())
    assert var.word_embed.weight.grad.any() and var.blocks[-1].ffn.fc2.weight.grad.any()


def test_student_weights_after_steps_are_those_without_a_teacher(upstream: Upstream) -> None:
    """Three steps of AdamW, clipped apart: with no distillation loss the student cannot tell that there is a teacher."""
    finals = []
    for with_teacher in (False, True):
        var, teacher = build_var(upstream).train(), build_teacher()
        optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (var, teacher)]
        torch.manual_seed(20)
        for step in range(3):
            label_B, x_BLC, alias_K = batch(step)
            if with_teacher:
                out = teacher(var, label_B, x_BLC, alias_K)
                loss = out.student_logits.square().mean() + out.teacher_logits.square().mean()
            else:
                loss = var(label_B, x_BLC).square().mean()
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for model, optimizer in zip((var, teacher), optimizers, strict=True):
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
        finals.append(var.state_dict())
    assert all(torch.equal(finals[0][key], finals[1][key]) for key in finals[0])


# ------------------------------------------------------------------------------------------------ state, errors


def test_state_dict_holds_the_teacher_alone(var: Any) -> None:
    teacher = build_teacher()
    teacher(var, *batch())
    names = list(teacher.state_dict())
    assert all(name.startswith(("embed.", "cross.0.", "cross.1.")) for name in names)
    parameters = {name for name, _ in teacher.named_parameters()}
    assert set(names) == parameters | {"embed.mean_TC", "embed.batches"}
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in var.parameters()}
    twin = build_teacher(drawn=False)
    twin.load_state_dict(teacher.state_dict(), strict=True)
    out, again = (seeded(model, var, *batch()) for model in (teacher, twin))
    assert torch.equal(out.teacher_logits, again.teacher_logits)


def test_geometry_survives_json() -> None:
    for fields in ({}, {"mask": "privileged", "alias_scales": 3, "blocks": 1}):
        g = geometry(**fields)
        assert TeacherGeometry.from_dict(json.loads(json.dumps(g.to_dict()))) == g


def test_positions_are_distinct_and_the_images_own() -> None:
    for grid in (1, 4, 16):
        position_TF = cell_positions(grid, 16)
        assert position_TF.shape == (grid * grid, 64)
        assert grid == 1 or torch.pdist(position_TF).min() > 0.5
    centre, around = cell_positions(1, 16), cell_positions(3, 16)
    assert torch.allclose(centre[0], around[4], atol=1e-5)  # the middle of the image in both grids
    assert torch.equal(around[1, :32], around[7, :32]) and not torch.equal(around[1, 32:], around[7, 32:])  # one column


def test_moving_an_alias_token_to_another_cell_or_state_matters() -> None:
    teacher = build_teacher()
    same = torch.ones(1, 1, CODE)
    embedded = teacher.embed.embedded([same, same.expand(1, 4, CODE)])[0]
    assert torch.pdist(embedded).min() > 0.5 and torch.allclose(
        embedded.std(-1, correction=0), torch.ones(5), atol=1e-3
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": "none"}, "unknown alias mask 'none'; choose one of causal, privileged"),
        ({"blocks": 0}, "0 teacher blocks"),
        ({"alias_scales": 5}, "alias_scales 5 is not within 1 .. 4"),
        ({"states": (0, 1, 2)}, "3 states were given for 4 token scales"),
        ({"states": (0, 2, 1, 2)}, "must rise within 0 .. 2"),
        ({"states": (0, 1, 2, 3)}, "must rise within 0 .. 2"),
        ({"width": 63}, "width 63 must be even"),
    ],
)
def test_bad_geometry_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geometry(**fields)


def test_a_var_or_alias_that_does_not_fit_is_refused(var: Any) -> None:
    label_B, x_BLC, alias_K = batch()
    with pytest.raises(ValueError, match="for a VAR of width 32"):
        build_teacher(width=32)(var, label_B, x_BLC, alias_K)
    with pytest.raises(ValueError, match="5 teacher blocks of a VAR with 4 blocks; use 1 to 4"):
        build_teacher(blocks=5)(var, label_B, x_BLC, alias_K)
    with pytest.raises(
        ValueError, match=r"alias maps of \(1,\) tokens were given; this teacher was built for \(1, 4\)"
    ):
        build_teacher()(var, label_B, x_BLC, alias_K[:1])
    with pytest.raises(PatchError, match="Recording patches a VAR; a Linear has no list of `blocks`"):
        Recording(2).apply(nn.Linear(2, 2))


@needs_submodule
@pytest.mark.parametrize("patch", [RecordedBlock, RecordedVAR])
def test_fingerprints_are_those_of_the_pinned_upstream(patch: Any) -> None:
    stock = getattr(load_upstream("submodule"), patch.host)
    for name, expected in patch.fingerprints.items():
        assert fingerprint(getattr(stock, name)) == expected, name


@needs_submodule
@pytest.mark.parametrize(("host", "method"), [("AdaLNSelfAttn", "forward"), ("VAR", "forward"), ("VAR", "get_logits")])
def test_drift_is_a_clear_error(host: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = load_upstream("submodule")
    var = build_var(upstream)
    stock = type(var)

    def drifted(self: Any, *args: Any) -> Tensor:
        return args[0]

    monkeypatch.setattr(getattr(upstream, host), method, drifted)
    with pytest.raises(PatchError, match=rf"upstream's {host}\.{method} as it is at 78b9539"):
        build_teacher()(var, *batch())
    assert type(var) is stock


# ------------------------------------------------------------------------------------------------ what it costs


@functools.cache
def overhead_of(depth: int) -> TeacherOverhead:
    return teacher_overhead(load_upstream(), depth)


@pytest.mark.parametrize(
    ("depth", "share", "flops"), [(12, 2.66, 15.97), (16, 2.04, 11.60), (20, 1.64, 9.04), (24, 1.38, 7.38)]
)
def test_overhead_is_within_the_papers_limits(depth: int, share: float, flops: float) -> None:
    """V=8192, M=2, alias stride 8; d16 to d24 within 15% FLOPs, d12 to d30 within 3% parameters."""
    overhead = overhead_of(depth)
    assert overhead.parameters <= 0.03 and (depth < 16 or overhead.flops <= 0.15)
    assert round(100 * overhead.parameters, 2) == share and round(100 * overhead.flops, 2) == flops


def test_overhead_of_d30_in_parameters() -> None:
    teacher, d = TeacherGeometry(64 * 30), 64 * 30
    own = teacher.blocks * (3 * d * d + 3 * d + d // 2 + d) - teacher.blocks * d + (32 + 64 + 1 + 3) * d
    overhead = overhead_of(30)
    assert overhead.teacher_parameters == own
    assert overhead.parameters <= 0.03 and overhead.flops <= 0.15


def test_flop_count_by_hand() -> None:
    """The counter's d16 baseline against the matrix products one would list: forward 2 FLOPs a multiply-add, times 3."""
    d, L, depth, V = 1024, 680, 16, 8192
    products = depth * (12 * d * d * L + 2 * L * L * d + 6 * d * d) + (V * d * L + 2 * d * d) + 32 * d * 679
    overhead = overhead_of(16)
    assert overhead.var_flops == pytest.approx(3 * 2 * products, rel=0.01)
