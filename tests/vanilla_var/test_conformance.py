"""The stand-in refocus_ext/vanilla_var against the submodule var_upstream: equal to the bit, or it does not conform.

Every comparison is of raw bytes, so that -0.0 and 0.0 differ too. Weights are drawn large enough that every part of a
network acts on the result (VAR's own initial weights would hide its blocks behind gates of 1e-3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as tdist
from torch.nn import functional as F

from patches.upstream import load_upstream, submodule_present

pytestmark = pytest.mark.skipif(
    not submodule_present(),
    reason="submodule var_upstream is not populated: conformance of the stand-in with upstream not checked",
)

KINDS = ("submodule", "stand-in")
PATCH_NUMS = (1, 2, 3, 4)
VAE = {"vocab_size": 64, "z_channels": 8, "ch": 32, "patch_nums": PATCH_NUMS}
VAR = {"depth": 3, "num_classes": 10, "embed_dim": 64, "num_heads": 2}
B = 3


def on_both(function: Callable[[Any], Any], *, seed: int = 0) -> list[Any]:
    """`function` of the submodule and of the stand-in, each from the same global seed."""
    results = []
    for kind in KINDS:
        torch.manual_seed(seed)
        results.append(function(load_upstream(kind)))
    return results


def for_each(models: list[Any], function: Callable[[Any], Any], *, seed: int = 1) -> list[Any]:
    """`function` of each model, each from the same global seed."""
    results = []
    for model in models:
        torch.manual_seed(seed)
        results.append(function(model))
    return results


def assert_same(stock: Any, own: Any, where: str = "result") -> None:
    """Equal structure, types, shapes and bytes."""
    if isinstance(stock, Tensor):
        assert (stock.shape, stock.dtype) == (own.shape, own.dtype), where
        assert torch.equal(raw(stock), raw(own)), f"{where}: other bits"
    elif isinstance(stock, dict):
        assert list(stock) == list(own), f"{where}: other keys, or another order"
        for key in stock:
            assert_same(stock[key], own[key], f"{where}[{key}]")
    elif isinstance(stock, (list, tuple)):
        assert len(stock) == len(own), where
        for i, (one, other) in enumerate(zip(stock, own, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    else:
        assert stock == own, where


def raw(x: Tensor) -> Tensor:
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def grads(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter; a parameter that got none at all would make a comparison void."""
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, f"no gradient reached {name}"
        found[name] = parameter.grad
    return found


@torch.no_grad()
def draw_weights(model: nn.Module) -> None:
    """Weights of a size at which every layer matters: matrices at 1/sqrt(fan-in), the rest around their value."""
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        parameter.add_(noise / parameter[0].numel() ** 0.5 if parameter.ndim in (2, 4) else 0.2 * noise)


def random_image(n: int = B) -> Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(7)) * 2 - 1


def random_latent(n: int = B) -> Tensor:
    return torch.randn(n, 8, 4, 4, generator=torch.Generator().manual_seed(8)) * 1.5


def random_tokens(n: int = B) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randint(64, (n, pn * pn), generator=generator) for pn in PATCH_NUMS]


# ---------------------------------------------------------------------------------------------------- quantizer


def quantizers(share: int = 4, znorm: bool = False, **options: Any) -> list[Any]:
    def build(up: Any) -> Any:
        options.setdefault("v_patch_nums", PATCH_NUMS)
        return up.VectorQuantizer2(64, 8, using_znorm=znorm, share_quant_resi=share, **options)

    return on_both(build)


MODES = pytest.mark.parametrize(
    ("share", "znorm"), [(0, False), (1, False), (2, True), (3, False), (4, False), (4, True)]
)


@MODES
def test_quantizer_weights_tokens_and_prefixes(share: int, znorm: bool) -> None:
    models = quantizers(share, znorm)
    assert_same(*for_each(models, lambda q: dict(q.state_dict())))

    def encode(q: Any) -> list[Any]:
        tokens, f_hats = (q.f_to_idxBl_or_fhat(random_latent(), to_fhat=to_fhat) for to_fhat in (False, True))
        other = q.f_to_idxBl_or_fhat(random_latent(), to_fhat=False, v_patch_nums=(2, (1, 3), 4))
        return [tokens, f_hats, other, q.idxBl_to_var_input(tokens)]

    stock, own = for_each(models, encode)
    assert len(torch.cat(stock[0], dim=1).unique()) > 20, "too few codes in use to compare anything"
    assert_same(stock, own)


@MODES
@pytest.mark.parametrize("all_to_max_scale", [True, False])
def test_quantizer_decodes_the_same_prefixes(share: int, znorm: bool, all_to_max_scale: bool) -> None:
    def decode(q: Any) -> list[Any]:
        ms_h = [
            q.embedding(idx).transpose(1, 2).view(B, 8, pn, pn)
            for idx, pn in zip(random_tokens(), PATCH_NUMS, strict=True)
        ]
        return [q.embed_to_fhat(ms_h, all_to_max_scale=all_to_max_scale, last_one=last) for last in (True, False)]

    assert_same(*for_each(quantizers(share, znorm), decode))


@pytest.mark.parametrize("prog_si", [0, 1, 3])
def test_quantizer_stops_early_in_progressive_training(prog_si: int) -> None:
    def encode(q: Any) -> list[Any]:
        q.prog_si = prog_si
        tokens = q.f_to_idxBl_or_fhat(random_latent(), to_fhat=False)
        return [tokens, q.f_to_idxBl_or_fhat(random_latent(), to_fhat=True), q.idxBl_to_var_input(random_tokens())]

    assert_same(*for_each(quantizers(), encode))


@pytest.mark.parametrize("eini", [0.3, -5.0, 0.0])
def test_codebook_initialisation(eini: float) -> None:
    def initialise(q: Any) -> Tensor:
        q.eini(eini)
        return q.embedding.weight

    assert_same(*for_each(quantizers(), initialise))


def test_each_scale_meets_the_same_phi() -> None:
    def choice(q: Any) -> list[str]:
        names = {module: name for name, module in q.named_modules()}
        last = len(q.v_patch_nums) - 1
        return [names[q.quant_resi[si / last]] for si in range(last + 1)]

    for scales in range(2, 13):
        for share in (0, *range(1, 7)):
            stock, own = quantizers(share, v_patch_nums=tuple(range(1, scales + 1)))
            assert choice(stock) == choice(own), f"{share=}, {scales=}"


def test_phi_switched_off_is_the_identity() -> None:
    stock, own = quantizers(quant_resi=0.0)
    assert_same(dict(stock.state_dict()), dict(own.state_dict()))
    assert_same(*(q.f_to_idxBl_or_fhat(random_latent(), to_fhat=True) for q in (stock, own)))


@pytest.fixture
def process_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One gloo process, and upstream's own flag set: it counts hits only where its `dist.initialize` ran, on CUDA."""
    upstream_dist = load_upstream("submodule").VectorQuantizer2.forward.__globals__["dist"]
    monkeypatch.setitem(vars(upstream_dist), "__initialized", True)
    tdist.init_process_group("gloo", store=tdist.HashStore(), rank=0, world_size=1)
    yield
    tdist.destroy_process_group()


def quantizer_step(q: Any) -> list[Any]:
    latent = random_latent().requires_grad_()
    f_hat, usages, loss = q(latent, ret_usages=True)
    (loss * 3 + (f_hat * random_latent(2 * B)[B:]).sum()).backward()
    return [f_hat, usages, loss, latent.grad, grads(q), q.ema_vocab_hit_SV.clone(), q.record_hit]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("record_hit", [0, 50, 98])  # the decay changes after 0 and after 100 counted scales
@MODES
def test_quantizer_training_step(share: int, znorm: bool, record_hit: int) -> None:
    def step(q: Any) -> list[Any]:
        q.ema_vocab_hit_SV.uniform_(0, 0.12)  # around the margin that `usages` counts from, 0.06
        q.record_hit = record_hit
        return quantizer_step(q)

    assert_same(*for_each(quantizers(share, znorm), step))


@pytest.mark.usefixtures("process_group")
def test_quantizer_forward_in_eval_mode_and_half_precision() -> None:
    models = [q.eval() for q in quantizers()]
    assert_same(*for_each(models, quantizer_step))
    assert_same(*for_each(models, lambda q: q(random_latent().bfloat16())))


# ---------------------------------------------------------------------------------------------------- VQVAE


def vaes(**options: Any) -> list[Any]:
    return on_both(lambda up: up.build_vae(**{**VAE, **options}))


def with_varied_tokens(models: list[Any]) -> list[Any]:
    """Scales the latent of an untrained encoder so that it reaches many codes."""
    for vae in models:
        vae.quant_conv.weight.data.mul_(30)
    return models


@pytest.mark.parametrize("options", [{}, {"share_quant_resi": 0, "dropout": 0.1, "test_mode": False}])
def test_vae_initial_weights(options: dict[str, Any]) -> None:
    stock, own = vaes(**options)
    assert_same(dict(stock.state_dict()), dict(own.state_dict()))
    assert_same([name for name, _ in stock.named_parameters()], [name for name, _ in own.named_parameters()])
    for attribute in ("V", "vocab_size", "Cvae", "downsample", "test_mode", "training"):
        assert getattr(stock, attribute) == getattr(own, attribute)
    assert [p.requires_grad for p in stock.parameters()] == [p.requires_grad for p in own.parameters()]


def test_a_batch_of_one_is_the_same() -> None:
    """Alone in its batch an image's strides are ambiguous, and PyTorch chooses the layout of phi by them."""

    def run(vae: Any) -> list[Any]:
        tokens = vae.img_to_idxBl(random_image()[:1])
        images = [vae.idxBl_to_img(tokens, same_shape=same, last_one=True) for same in (True, False)]
        f_hat = vae.quantize.f_to_idxBl_or_fhat(random_latent()[:1], to_fhat=True)[-1]
        return [tokens, *images, vae.quantize.idxBl_to_var_input(tokens), f_hat]

    assert_same(*for_each(with_varied_tokens(vaes()), run))


@pytest.mark.parametrize("using_znorm", [False, True])
def test_vae_encodes_and_decodes_the_same(using_znorm: bool) -> None:
    def run(vae: Any) -> list[Any]:
        tokens = vae.img_to_idxBl(random_image())
        out = [tokens, vae.img_to_idxBl(random_image(), v_patch_nums=(1, (2, 3), 4))]
        for last_one in (False, True):
            out.append(vae.img_to_reconstructed_img(random_image(), last_one=last_one))
            out += [vae.idxBl_to_img(tokens, same_shape=same, last_one=last_one) for same in (True, False)]
        f_hat = vae.quantize.f_to_idxBl_or_fhat(random_latent(), to_fhat=True)[-1]
        return [*out, vae.fhat_to_img(f_hat)]

    stock, own = for_each(with_varied_tokens(vaes(using_znorm=using_znorm)), run)
    assert len(torch.cat(stock[0], dim=1).unique()) > 10, "too few codes in use to compare anything"
    assert_same(stock, own)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_vae_training_step(dropout: float) -> None:
    def step(vae: Any) -> list[Any]:
        img = random_image(2).requires_grad_()
        reconstruction, usages, vq_loss = vae(img, ret_usages=True)
        (F.mse_loss(reconstruction, random_image(2)) + vq_loss).backward()
        return [reconstruction, usages, vq_loss, img.grad, grads(vae)]

    models = with_varied_tokens(vaes(test_mode=False, dropout=dropout, share_quant_resi=1))
    assert_same(*for_each(models, step))


def test_vaes_load_each_other_and_forgive_another_number_of_scales() -> None:
    stock, own = vaes()
    donors = on_both(lambda up: up.build_vae(**VAE), seed=5)
    longer = on_both(lambda up: up.build_vae(**{**VAE, "patch_nums": (1, 2, 3, 3, 4)}), seed=6)
    for donor_stock, donor_own in (donors, longer):
        stock.load_state_dict(dict(donor_own.state_dict()), strict=True)
        own.load_state_dict(dict(donor_stock.state_dict()), strict=True)
        assert_same(dict(stock.state_dict()), dict(own.state_dict()))


# ---------------------------------------------------------------------------------------------------- VAR

NORMS = pytest.mark.parametrize(
    ("shared_aln", "attn_l2_norm"), [(False, True), (False, False), (True, True), (True, False)]
)


def vars_(**options: Any) -> list[Any]:
    def build(up: Any) -> Any:
        return up.build_var(with_varied_tokens([up.build_vae(**VAE)])[0], **{**VAR, **options})

    return on_both(build)


def with_drawn_weights(models: list[Any]) -> list[Any]:
    for_each(models, draw_weights)
    return models


@NORMS
def test_var_initial_weights(shared_aln: bool, attn_l2_norm: bool) -> None:
    models = vars_(shared_aln=shared_aln, attn_l2_norm=attn_l2_norm)
    assert_same(*for_each(models, lambda var: dict(var.state_dict())))
    assert_same(*for_each(models, lambda var: [name for name, _ in var.named_parameters()]))
    for options in ({}, {"init_adaln": 0.3, "init_adaln_gamma": 1e-2, "init_head": -1}):
        for_each(models, lambda var, options=options: var.init_weights(**options))  # type: ignore[misc]
        assert_same(*for_each(models, lambda var: dict(var.state_dict())))


@NORMS
def test_var_weights_before_init_weights(shared_aln: bool, attn_l2_norm: bool) -> None:
    def construct(up: Any) -> Any:
        return up.VAR(
            vae_local=up.build_vae(**VAE),
            patch_nums=PATCH_NUMS,
            shared_aln=shared_aln,
            attn_l2_norm=attn_l2_norm,
            **{**VAR, "embed_dim": 36},  # no multiple of 16: what normal_ draws depends on the pieces it is asked for
        )

    assert_same(*for_each(on_both(construct), lambda var: dict(var.state_dict())))


def test_var_attributes() -> None:
    stock, own = vars_()
    for name in (
        *("Cvae", "V", "C", "D", "L", "depth", "num_heads", "num_classes", "first_l", "begin_ends", "patch_nums"),
        *("num_stages_minus_1", "cond_drop_rate", "drop_path_rate", "prog_si"),
    ):
        assert getattr(stock, name) == getattr(own, name), name
    assert_same(stock.uniform_prob, own.uniform_prob)
    for var in (stock, own):
        assert var.vae_quant_proxy[0] is var.vae_proxy[0].quantize
    for one, other in zip(stock.blocks, own.blocks, strict=True):
        for name in ("block_idx", "last_drop_p", "C", "D", "shared_aln", "fused_add_norm_fn"):
            assert getattr(one, name) == getattr(other, name), name
        for name in ("num_heads", "head_dim", "scale", "max_scale_mul", "attn_drop", "caching", "cached_k", "cached_v"):
            assert getattr(one.attn, name) == getattr(other.attn, name), name
        assert getattr(one.drop_path, "drop_prob", None) == getattr(other.drop_path, "drop_prob", None)


def teacher_forced(var: Any) -> Tensor:
    tokens = random_tokens(4)
    return var(torch.tensor([1, 9, 4, 0]), var.vae_quant_proxy[0].idxBl_to_var_input(tokens))


def gradient_step(var: Any) -> list[Any]:
    var.zero_grad()
    logits = teacher_forced(var)
    F.cross_entropy(logits.flatten(0, 1), torch.cat(random_tokens(4), dim=1).flatten()).backward()
    return [logits, grads(var)]


@NORMS
def test_var_logits_and_every_gradient(shared_aln: bool, attn_l2_norm: bool) -> None:
    models = with_drawn_weights(vars_(shared_aln=shared_aln, attn_l2_norm=attn_l2_norm))
    for var in models:
        var.cond_drop_rate = 0.5
        for block in var.blocks[1:]:
            block.drop_path.drop_prob = 0.5
    stock_train, own_train = for_each(models, lambda var: gradient_step(var.train()))
    stock_eval, own_eval = for_each(models, lambda var: gradient_step(var.eval()))
    assert not torch.equal(stock_train[0], stock_eval[0]), "drop path did not act"
    assert_same(stock_train, own_train, "train")
    assert_same(stock_eval, own_eval, "eval")


def test_var_with_dropout_trains_the_same() -> None:
    def construct(up: Any) -> Any:
        options = {**VAR, "drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.3, "cond_drop_rate": 0.3}
        return up.VAR(vae_local=up.build_vae(**VAE), patch_nums=PATCH_NUMS, **options)

    models = with_drawn_weights(on_both(construct))
    assert_same(*for_each(models, gradient_step))
    assert_same(*for_each(models, lambda var: gradient_step(var.eval())))


def test_var_logits_and_gradients_under_cpu_autocast() -> None:
    def step(var: Any) -> list[Any]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return gradient_step(var)

    for shared_aln in (False, True):
        stock, own = for_each(with_drawn_weights(vars_(shared_aln=shared_aln)), step)
        assert_same(stock, own)


def test_vars_load_each_other() -> None:
    stock, own = vars_()
    donor_stock, donor_own = with_drawn_weights(vars_())
    stock.load_state_dict(donor_own.state_dict(), strict=True)
    own.load_state_dict(donor_stock.state_dict(), strict=True)
    assert_same(*for_each([stock, own], teacher_forced))


# ---------------------------------------------------------------------------------------------------- sampling


def sample_with_logits(var: Any, **options: Any) -> list[Any]:
    """The images, and the logits of every step: tokens alone would hide a difference in their last bits."""
    logits: list[Tensor] = []
    hook = var.head.register_forward_hook(lambda _module, _inputs, output: logits.append(output.clone()))
    try:
        images = var.autoregressive_infer_cfg(B, **options)
    finally:
        hook.remove()
    assert len(logits) == len(PATCH_NUMS)
    assert all(block.attn.cached_k is None and not block.attn.caching for block in var.blocks)
    return [images, logits]


@pytest.fixture(scope="module")
def samplers() -> list[Any]:
    return [var.eval() for var in with_drawn_weights(vars_())]


SAMPLES: dict[str, dict[str, Any]] = {
    "plain": {"label_B": 3, "g_seed": 0},
    "another seed": {"label_B": 3, "g_seed": 1},
    "paper": {"label_B": torch.tensor([1, 0, 9]), "g_seed": 2, "top_k": 900 % 64, "top_p": 0.96},
    "no guidance": {"label_B": 3, "g_seed": 3, "cfg": 0.0},
    "strong guidance": {"label_B": 3, "g_seed": 4, "cfg": 4.0},
    "top_k": {"label_B": torch.tensor([5, 5, 6]), "g_seed": 5, "top_k": 5},
    "top_p": {"label_B": 3, "g_seed": 6, "top_p": 0.4},
    "random labels": {"label_B": None, "g_seed": 7},
    "no class": {"label_B": -1, "g_seed": 8, "top_k": 9},
    "smooth": {"label_B": 2, "g_seed": 9, "more_smooth": True},
    "smooth, filtered": {"label_B": None, "g_seed": 10, "more_smooth": True, "top_k": 20, "top_p": 0.9, "cfg": 3.0},
    "global generator": {"label_B": None, "g_seed": None},
    "smooth, global generator": {"label_B": 1, "g_seed": None, "more_smooth": True},
}


@pytest.mark.parametrize("options", SAMPLES.values(), ids=SAMPLES)
def test_sampled_images(samplers: list[Any], options: dict[str, Any]) -> None:
    assert_same(*for_each(samplers, lambda var: sample_with_logits(var, **options)))


@NORMS
@pytest.mark.parametrize("more_smooth", [False, True])
def test_sampled_images_of_every_kind_of_block(shared_aln: bool, attn_l2_norm: bool, more_smooth: bool) -> None:
    models = with_drawn_weights(vars_(shared_aln=shared_aln, attn_l2_norm=attn_l2_norm))
    options = {"label_B": torch.tensor([7, 2, 2]), "g_seed": 11, "top_k": 30, "top_p": 0.95, "more_smooth": more_smooth}
    assert_same(*for_each(models, lambda var: sample_with_logits(var.eval(), **options)))


@pytest.mark.parametrize(
    ("top_k", "top_p", "num_samples"),
    [(0, 0.0, 1), (0, 0.0, -4), (7, 0.0, 1), (7, 0.0, 4), (0, 0.8, 1), (0, 1e-9, 1), (30, 0.5, 4), (40, 1.0, 1)],
)
def test_sampling_function(top_k: int, top_p: float, num_samples: int) -> None:
    def draw(up: Any) -> list[Tensor]:
        logits = torch.randn(2, 5, 64).mul_(4).round_().div_(2)  # with ties, at the thresholds too
        rng = torch.Generator().manual_seed(3)
        return [up.sample_with_top_k_top_p_(logits, top_k, top_p, rng=rng, num_samples=num_samples), logits]

    assert_same(*on_both(draw))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("own_generator", [False, True])
def test_gumbel_softmax(hard: bool, own_generator: bool) -> None:
    def mix(up: Any) -> list[Tensor]:
        logits = torch.randn(2, 5, 64).requires_grad_()
        rng = torch.Generator().manual_seed(3) if own_generator else None
        mixed = up.gumbel_softmax_with_rng(logits, tau=0.3, hard=hard, dim=-1, rng=rng)
        (mixed * torch.randn(64)).sum().backward()
        assert logits.grad is not None
        return [mixed, logits.grad]

    assert_same(*on_both(mix))
