"""VQVAE -> encodes the K focus states of an image, so that its stock methods and callers produce focus tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from patches.focus_quantizer import FocusQuantizer, PatchNums
from patches.instance import InstancePatch, Patch, PatchError, swap_class

if TYPE_CHECKING:
    from refocus_ext.optics.pyramid import FocusPyramid


class FocusVQVAE(InstancePatch):
    """Modifications:
    - images are encoded as their focus states: T_k = quant_conv(E(F_k)), plus beta_k noise in train mode
    - the quantizer gets the list of targets instead of one latent; decoding is stock
    - with views smaller than the image, T_k is the bicubically upsampled latent of the small view
    - with the pyramid's blur off the image is encoded once and that one latent takes the stock path
    - with `recomputes`, a pass that needs a gradient keeps its input only and runs again in the backward pass
    """

    host = "VQVAE"
    fingerprints = {  # noqa: RUF012
        "forward": "51bf54bf02db",
        "img_to_idxBl": "8604b1e46b45",
        "img_to_reconstructed_img": "a43c2c60247d",
    }

    focus_pyramid: FocusPyramid
    recomputes: bool
    drops: bool  # whether a pass draws random numbers: dropout
    # of the stock class
    training: bool
    encoder: nn.Module
    decoder: nn.Module
    quant_conv: nn.Module
    post_quant_conv: nn.Module
    quantize: FocusQuantizer

    def encode_view(self, view_B3HW: Tensor) -> Tensor:
        """T = quant_conv(E(view)), (B,C,h,w)."""
        return _recomputed(self._encode, view_B3HW, self.drops) if self._recomputing else self._encode(view_B3HW)

    def decode(self, f_hat_BChw: Tensor) -> Tensor:
        """Image (B,3,H,W) of a latent, not clamped."""
        if not self._recomputing:
            return self._decode(f_hat_BChw)
        # The last layer stays outside: the adaptive weight of the critic asks for gradients of its weight alone, for which
        # the whole pass would run again, and be kept.
        last: Any = self.decoder.conv_out
        return last(_recomputed(partial(_input_of, last, self._decode), f_hat_BChw, self.drops))

    @property
    def _recomputing(self) -> bool:
        return self.recomputes and torch.is_grad_enabled()

    def _encode(self, view_B3HW: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(view_B3HW))

    def _decode(self, f_hat_BChw: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(f_hat_BChw))

    def encode_targets(self, x_B3HW: Tensor) -> Tensor | list[Tensor]:
        """The focus targets T_k, K times (B,C,h,w); one latent (B,C,h,w) if the pyramid does not refocus."""
        if not self.focus_pyramid.refocuses:
            return self.encode_view(x_B3HW)
        return [self.expand(latent) for latent in self.encode_states(x_B3HW)]

    def encode_states(self, x_B3HW: Tensor) -> list[Tensor]:
        """The focus states encoded at the size of their views, K times (B,C,h/d_k,w/d_k); see `FocusPyramid.subsampling`."""
        return [self.encode_view(view) for view in self.focus_pyramid.structure_views(x_B3HW, training=self.training)]

    def expand(self, latent_BCnn: Tensor) -> Tensor:
        """The focus target (B,C,h,w) of a latent of `encode_states`: bicubic; the latent itself where it is not smaller."""
        size = self.focus_pyramid.latent_size
        smaller = latent_BCnn.shape[-1] < size and self.focus_pyramid.views != "full"
        return F.interpolate(latent_BCnn.float(), size=(size, size), mode="bicubic") if smaller else latent_BCnn

    def decode_state(self, f_hat_BChw: Tensor, state: int) -> Tensor:
        """Image (B,3,H/d_k,W/d_k) of a prefix of focus state index `state`, at the size of its view, not clamped."""
        d = self.focus_pyramid.subsampling[state]
        return self.decode(F.avg_pool2d(f_hat_BChw, d) if d > 1 else f_hat_BChw)

    def forward(self, inp: Tensor, ret_usages: bool = False) -> tuple[Tensor, list[float] | None, Tensor]:
        """Stock contract: (reconstruction (B,3,H,W), usage per scale or None, VQ loss)."""
        f_hat, usages, vq_loss = self.quantize(self.encode_targets(inp), ret_usages=ret_usages)  # type: ignore[operator]
        return self.decode(f_hat), usages, vq_loss

    def img_to_idxBl(self, inp_img_no_grad: Tensor, v_patch_nums: PatchNums | None = None) -> list[Tensor]:
        """Focus tokens of an image batch: S times (B, pn*pn)."""
        targets = self.encode_targets(inp_img_no_grad)
        return self.quantize.f_to_idxBl_or_fhat(targets, to_fhat=False, v_patch_nums=v_patch_nums)

    def img_to_reconstructed_img(
        self, x: Tensor, v_patch_nums: PatchNums | None = None, last_one: bool = False
    ) -> list[Tensor] | Tensor:
        """Images of every prefix (S times (B,3,H,W), clamped to [-1,1]), or of the whole sequence."""
        f_hat_S = self.quantize.f_to_idxBl_or_fhat(self.encode_targets(x), to_fhat=True, v_patch_nums=v_patch_nums)
        if last_one:
            return self.decode(f_hat_S[-1]).clamp_(-1, 1)
        return [self.decode(f_hat).clamp_(-1, 1) for f_hat in f_hat_S]


def _recomputed(forward: Callable[[Tensor], Tensor], x: Tensor, drops: bool) -> Tensor:
    """`forward(x)`, recomputed in the backward pass, with the same random numbers if it `drops` activations."""
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=drops)


def _input_of(layer: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `forward(x)` passes to `layer`, its last one."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        forward(x)
    finally:
        hook.remove()
    return seen[0]


class Focus(Patch):
    """The focus pyramid as a patch of a VQVAE: `with patched(vae, Focus(pyramid)): vae.img_to_idxBl(x)`.

    Args:
        recomputes: activation checkpointing of each pass of encoder and decoder; results are the same bits on a CPU.
    """

    def __init__(self, pyramid: FocusPyramid, recomputes: bool = False) -> None:
        self.pyramid, self.recomputes = pyramid, recomputes

    def hosts(self, model: Any) -> Sequence[nn.Module]:
        if not isinstance(getattr(model, "quantize", None), nn.Module):
            raise PatchError(f"Focus patches a VQVAE; a {type(model).__name__} has no quantizer in `quantize`.")
        return [model, model.quantize]

    def apply(self, model: Any) -> None:
        vae, quantizer = self.hosts(model)
        latent = model.quantize.v_patch_nums[-1]
        if latent != self.pyramid.latent_size:
            raise ValueError(
                f"the pyramid is for {self.pyramid.image_size} px ({self.pyramid.latent_size} latent cells) but the VQVAE's "
                f"last token map has {latent}; build the pyramid for {latent * self.pyramid.stride} px."
            )
        swap_class(quantizer, FocusQuantizer, focus_pyramid=self.pyramid)
        drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules())
        swap_class(vae, FocusVQVAE, focus_pyramid=self.pyramid, recomputes=self.recomputes, drops=drops)
