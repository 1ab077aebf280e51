"""The class-swap mechanism and the focus patch: what it changes, what it leaves alone, and the quantizer's gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import PATCH_NUMS, WITHOUT_SUBMODULE, small_vae
from torch import Tensor, nn

from patches import Focus, PatchError, Upstream, load_upstream, patched, submodule_present
from patches.focus_quantizer import FocusQuantizer
from patches.focus_vqvae import FocusVQVAE
from patches.instance import fingerprint
from patches.upstream import import_isolated, on_device
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.vector_quantization import prefix_projection, straight_through

OFF = FocusPyramid(image_size=64, states=3, rho_max=6.0, blur="none")
needs_submodule = pytest.mark.skipif(not submodule_present(), reason=WITHOUT_SUBMODULE)


@pytest.fixture(autouse=True)
def _eval_mode(request: pytest.FixtureRequest) -> None:
    if "vae" in request.fixturenames:
        request.getfixturevalue("vae").eval()


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------------ the mechanism


def test_patched_changes_tokens_and_restores_everything(vae: Any, pyramid: FocusPyramid, images: Tensor) -> None:
    before, classes, attributes = vae.img_to_idxBl(images), (type(vae), type(vae.quantize)), set(vae.__dict__)
    state = {key: value.clone() for key, value in vae.state_dict().items()}
    with patched(vae, Focus(pyramid)):
        assert (type(vae).__mro__[1], type(vae.quantize).__mro__[1]) == (FocusVQVAE, FocusQuantizer)
        assert list(vae.state_dict()) == list(state)
        inside = vae.img_to_idxBl(images)
        assert not equal(inside, before)
    assert (type(vae), type(vae.quantize)) == classes and set(vae.__dict__) == attributes
    assert equal(vae.img_to_idxBl(images), before)
    assert all(torch.equal(value, state[key]) for key, value in vae.state_dict().items())
    with patched(vae, Focus(pyramid)):
        assert equal(vae.img_to_idxBl(images), inside)


def test_restored_after_an_exception(vae: Any, pyramid: FocusPyramid) -> None:
    stock = type(vae)
    with pytest.raises(RuntimeError, match="inside"), patched(vae, Focus(pyramid)):
        raise RuntimeError("inside")
    assert type(vae) is stock


def test_twice_is_once_and_remove_undoes_it(vae: Any, pyramid: FocusPyramid) -> None:
    stock, patch = type(vae), Focus(pyramid)
    patch.apply(vae)
    once = type(vae)
    patch.apply(vae)
    assert type(vae) is once
    patch.remove(vae)
    patch.remove(vae)
    assert type(vae) is stock and "focus_pyramid" not in vae.__dict__


def test_nested_pyramids_unwind(vae: Any, pyramid: FocusPyramid, images: Tensor) -> None:
    wide = FocusPyramid(image_size=64, states=3, rho_max=12.0)
    with patched(vae, Focus(pyramid)):
        outer = vae.img_to_idxBl(images)
        with patched(vae, Focus(wide)):
            assert vae.focus_pyramid is wide and vae.quantize.focus_pyramid is wide
        assert vae.focus_pyramid is pyramid and vae.quantize.focus_pyramid is pyramid
        assert equal(vae.img_to_idxBl(images), outer)


def test_a_second_model_stays_vanilla(upstream: Upstream, focus_vae: Any, images: Tensor) -> None:
    other = small_vae(upstream).eval()
    assert type(other) is upstream.VQVAE and type(other.quantize) is upstream.VectorQuantizer2
    with patched(focus_vae, Focus(OFF)):
        assert equal(other.img_to_idxBl(images), focus_vae.img_to_idxBl(images))


def test_var_sees_the_patch_through_its_own_reference(upstream: Upstream, vae: Any, pyramid: FocusPyramid) -> None:
    var = upstream.build_var(vae, depth=2, num_classes=5)
    Focus(pyramid).apply(vae)
    assert isinstance(var.vae_quant_proxy[0], FocusQuantizer)


def test_patched_model_copies_and_loads_strictly(focus_vae: Any, upstream: Upstream, images: Tensor) -> None:
    twin = copy.deepcopy(focus_vae)
    assert equal(twin.img_to_idxBl(images), focus_vae.img_to_idxBl(images))
    small_vae(upstream, seed=5).load_state_dict(focus_vae.state_dict(), strict=True)


def test_foreign_objects_are_refused(pyramid: FocusPyramid) -> None:
    load_upstream()
    with pytest.raises(PatchError, match="Linear has no quantizer"):
        Focus(pyramid).apply(nn.Linear(2, 2))
    impostor = nn.Module()
    impostor.quantize = nn.Module()
    impostor.quantize.v_patch_nums = PATCH_NUMS  # type: ignore[assignment]
    with pytest.raises(PatchError, match=r"patches a VectorQuantizer2 built by patches.upstream, not a Module"):
        Focus(pyramid).apply(impostor)


def test_pyramid_of_another_size_is_refused(vae: Any) -> None:
    with pytest.raises(ValueError, match=r"256 px .16 latent cells. but the VQVAE's last token map has 4"):
        Focus(FocusPyramid()).apply(vae)


@needs_submodule
@pytest.mark.parametrize("patch", [FocusQuantizer, FocusVQVAE])
def test_fingerprints_are_those_of_the_pinned_upstream(patch: type) -> None:
    stock = getattr(load_upstream("submodule"), patch.host)  # type: ignore[attr-defined]
    for name, expected in patch.fingerprints.items():  # type: ignore[attr-defined]
        assert fingerprint(getattr(stock, name)) == expected, name


@needs_submodule
def test_drift_is_a_clear_error(pyramid: FocusPyramid, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = load_upstream("submodule")
    vae = small_vae(upstream)

    def img_to_idxBl(self: Any, inp_img_no_grad: Tensor, v_patch_nums: Any = None) -> list[Tensor]:
        return []

    monkeypatch.setattr(upstream.VQVAE, "img_to_idxBl", img_to_idxBl)
    with pytest.raises(PatchError, match=r"FocusVQVAE overrides upstream's VQVAE\.img_to_idxBl as it is at 78b9539"):
        Focus(pyramid).apply(vae)


# ------------------------------------------------------------------------------------------------ blur off = upstream


def test_blur_off_is_stock_through_every_method(vae: Any, images: Tensor) -> None:
    stock = (
        vae.img_to_idxBl(images),
        vae.img_to_reconstructed_img(images),
        vae.img_to_reconstructed_img(images, last_one=True),
        vae.quantize.f_to_idxBl_or_fhat(vae.quant_conv(vae.encoder(images)), to_fhat=True),
    )
    with patched(vae, Focus(OFF)):
        assert equal(vae.img_to_idxBl(images), stock[0])
        assert equal(vae.img_to_reconstructed_img(images), stock[1])
        assert torch.equal(vae.img_to_reconstructed_img(images, last_one=True), stock[2])
        assert equal(vae.quantize.f_to_idxBl_or_fhat(vae.encode_view(images), to_fhat=True), stock[3])
        one_target = [vae.encode_view(images)] * 3  # the focus path with equal targets walks the same residuals
        assert equal(vae.quantize.f_to_idxBl_or_fhat(one_target, to_fhat=False), stock[0])
        assert equal(vae.quantize.f_to_idxBl_or_fhat(one_target, to_fhat=True), stock[3])


@pytest.mark.parametrize("znorm", [False, True])
def test_blur_off_forward_and_gradients_are_stock(upstream: Upstream, images: Tensor, znorm: bool) -> None:
    def run(vae: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        recon, _, vq_loss = vae(images)
        (recon.square().mean() + vq_loss).backward()
        return recon, vq_loss, [parameter.grad for parameter in vae.parameters()]

    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:  # upstream's forward asks for the world size, with or without a process group
        stock = run(small_vae(upstream, using_znorm=znorm))
    finally:
        torch.distributed.destroy_process_group()
    ours = small_vae(upstream, using_znorm=znorm)
    Focus(OFF).apply(ours)
    recon, vq_loss, gradients = run(ours)
    assert torch.equal(recon, stock[0]) and torch.equal(vq_loss, stock[1])
    assert equal(gradients, stock[2])


# ------------------------------------------------------------------------------------------------ focus tokens


def test_encoding_and_decoding_side_prefixes_are_bit_equal(focus_vae: Any, images: Tensor) -> None:
    tokens = focus_vae.img_to_idxBl(images)
    encoded = focus_vae.img_to_reconstructed_img(images)
    decoded = focus_vae.idxBl_to_img(tokens, same_shape=True)
    assert equal(encoded, decoded)


def test_single_state_scales_equal_stock_on_that_view(focus_vae: Any, pyramid: FocusPyramid, images: Tensor) -> None:
    """The first scale knows only state 1: its tokens are those of a vanilla VAE shown F_1."""
    tokens = focus_vae.img_to_idxBl(images)
    focused = pyramid.focused(images, 0)
    with patched(focus_vae, Focus(OFF)):
        stock = focus_vae.img_to_idxBl(focused)
    assert torch.equal(tokens[0], stock[0])


def test_residual_follows_the_targets(focus_vae: Any, images: Tensor) -> None:
    """A slow reference: at each scale quantize area-pooled T_g - f_hat by brute force."""
    quantizer, targets = focus_vae.quantize, focus_vae.encode_targets(images)
    tokens = quantizer.f_to_idxBl_or_fhat(targets, to_fhat=False)
    f_hat, states = torch.zeros_like(targets[0]), focus_vae.focus_pyramid.states_of(PATCH_NUMS)
    for si, (pn, state) in enumerate(zip(PATCH_NUMS, states, strict=True)):
        rest = nn.functional.adaptive_avg_pool2d(targets[state] - f_hat, pn)
        vectors = rest.permute(0, 2, 3, 1).reshape(-1, 8)
        expected = torch.cdist(vectors.double(), quantizer.embedding.weight.double()).argmin(1)
        assert (tokens[si].flatten() == expected).float().mean() > 0.99
        code = quantizer.embedding(tokens[si]).transpose(1, 2).reshape(3, 8, pn, pn)
        up = code if pn == 4 else nn.functional.interpolate(code, size=(4, 4), mode="bicubic")
        f_hat = f_hat + quantizer.quant_resi[si / 3](up)


def test_the_codebook_search_is_full_precision_whatever_the_process_wants(focus_vae: Any, images: Tensor) -> None:
    quantizer = focus_vae.quantize
    vectors = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    exact = torch.cdist(vectors.double(), quantizer.embedding.weight.double()).argmin(1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(quantizer.nearest_code(vectors), exact)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_wrong_number_of_targets_is_refused(focus_vae: Any, images: Tensor) -> None:
    with pytest.raises(ValueError, match="2 focus targets were given; the pyramid has 3 states"):
        focus_vae.quantize.f_to_idxBl_or_fhat([focus_vae.encode_view(images)] * 2, to_fhat=False)


def test_usage_is_counted_without_a_process_group(focus_vae: Any, images: Tensor) -> None:
    focus_vae.train()
    _, usages, _ = focus_vae(images, ret_usages=True)
    hits = focus_vae.quantize.ema_vocab_hit_SV
    assert [int(row.sum()) for row in hits] == [3 * pn * pn for pn in PATCH_NUMS]
    assert len(usages) == 4 and all(0 < usage <= 100 for usage in usages)
    focus_vae.eval()
    focus_vae(images)
    assert int(hits.sum()) == 3 * sum(pn * pn for pn in PATCH_NUMS), "eval mode must not count"


@needs_submodule
def test_upstreams_trainer_runs_on_focus_tokens(pyramid: FocusPyramid, images: Tensor) -> None:
    """VARTrainer.train_step and eval_ep of the submodule, unedited: the loss changes with the pyramid, training works."""
    upstream, trainer_module = load_upstream("submodule"), import_isolated("trainer")
    amp = import_isolated("utils.amp_sc")
    losses = {}
    for name, blur in (("focus", pyramid), ("stock", None), ("off", OFF)):
        vae = small_vae(upstream, test_mode=True)
        if blur:
            Focus(blur).apply(vae)
        var = upstream.build_var(vae, depth=2, num_classes=5)
        optimizer = amp.AmpOptimizer(
            mixed_precision=0, optimizer=torch.optim.AdamW(var.parameters(), lr=1e-2), names=[], paras=list(var.parameters()),
            grad_clip=2.0,
        )  # fmt: skip
        trainer = trainer_module.VARTrainer(
            device="cpu", patch_nums=PATCH_NUMS, resos=(16, 32, 48, 64), vae_local=vae, var_wo_ddp=var,
            var=_Unwrapped(var), var_opt=optimizer, label_smooth=0.0,
        )  # fmt: skip
        losses[name] = _train_and_evaluate(upstream, trainer, images)
    assert losses["off"] == losses["stock"]
    assert losses["focus"] != losses["stock"]
    assert losses["focus"][-1] < losses["focus"][0]


class _Unwrapped(nn.Module):
    """What upstream's train.py puts in DDP's place on one process."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.require_backward_grad_sync = False

    def forward(self, *args: Any) -> Tensor:
        return self.module(*args)


def _train_and_evaluate(upstream: Upstream, trainer: Any, images: Tensor) -> list[float]:
    labels, losses = torch.tensor([0, 1, 2]), []
    logger = import_isolated("utils.misc").MetricLogger()
    for step in range(4):
        torch.manual_seed(step)
        trainer.train_step(
            it=1, g_it=1, stepping=True, metric_lg=logger, tb_lg=None, inp_B3HW=images, label_B=labels, prog_si=-1,
            prog_wp_it=1,
        )  # fmt: skip
        trainer.var_wo_ddp.eval()
        torch.manual_seed(0)
        with on_device(upstream, "cpu"):
            losses.append(float(trainer.eval_ep([(images, labels)])[0]))
        trainer.var_wo_ddp.train()
    return losses


# ------------------------------------------------------------------------------------------------ gradient routes


def reached(vae: Any, loss: Tensor) -> set[str]:
    """The parts of the model that the loss's gradient reaches with something other than zero."""
    vae.zero_grad(set_to_none=True)
    loss.backward()
    parts = {"encoder": [vae.encoder, vae.quant_conv], "decoder": [vae.decoder, vae.post_quant_conv]}
    parts |= {"codebook": [vae.quantize.embedding], "phi": [vae.quantize.quant_resi]}
    live = lambda modules: any(p.grad is not None and p.grad.any() for m in modules for p in m.parameters())  # noqa: E731
    return {name for name, modules in parts.items() if live(modules)}


def test_gradient_routes(focus_vae: Any, images: Tensor) -> None:
    T_K = focus_vae.encode_targets(images)
    q = focus_vae.quantize.quantize(T_K)
    recon = focus_vae.decode(straight_through(q.f_hat_S[-1], T_K[-1])).square().mean()
    assert reached(focus_vae, recon) == {"encoder", "decoder"}
    T_K = focus_vae.encode_targets(images)
    assert reached(focus_vae, sum(focus_vae.quantize.quantize(T_K).commitment_S)) == {"encoder"}
    T_K = focus_vae.encode_targets(images)
    assert reached(focus_vae, sum(focus_vae.quantize.quantize(T_K).codebook_S)) == {"codebook", "phi"}


def test_each_scale_commits_to_its_own_state(focus_vae: Any, images: Tensor) -> None:
    T_K = [T.detach().requires_grad_() for T in focus_vae.encode_targets(images)]
    commitment = focus_vae.quantize.quantize(T_K).commitment_S
    for scale, state in enumerate(focus_vae.focus_pyramid.states_of(PATCH_NUMS)):
        gradients = torch.autograd.grad(commitment[scale], T_K, allow_unused=True, retain_graph=True)
        assert [k for k, g in enumerate(gradients) if g is not None] == [state]


@pytest.mark.parametrize("pn", [1, 2, 3, 4])
def test_prefix_gradient_is_projected(pn: int) -> None:
    """The target receives P^T g: what the tokens could not follow anyway is gone; at full size it is all of g."""
    torch.manual_seed(0)
    target, f_hat, g = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    prefix = straight_through(f_hat, target, pn)
    assert torch.allclose(prefix, f_hat, atol=1e-6)
    (prefix * g).sum().backward()
    assert target.grad is not None
    probe = torch.randn(1, 2, 4, 4, requires_grad=True)
    (expected,) = torch.autograd.grad((prefix_projection(probe, pn) * g).sum(), probe)
    assert torch.equal(target.grad, expected)
    if pn == 4:
        assert torch.equal(target.grad, g)
    else:
        assert torch.linalg.matrix_rank(target.grad[0, 0]) <= pn


def test_prefix_gradient_never_reaches_codebook_or_phi(focus_vae: Any, images: Tensor) -> None:
    T_K = focus_vae.encode_targets(images)
    prefix = straight_through(focus_vae.quantize.quantize(T_K).f_hat_S[0], T_K[0], 1)
    assert reached(focus_vae, focus_vae.decode(prefix).square().mean()) == {"encoder", "decoder"}
