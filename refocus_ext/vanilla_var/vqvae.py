"""The tokenizer: encoder, multi-scale residual quantizer, decoder.

Shapes: B batch, H, W image pixels, C = z_channels, h = H/16, w = W/16, S token scales, l = pn*pn tokens of a scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from refocus_ext.vanilla_var.autoencoder import STRIDE, Decoder, Encoder
from refocus_ext.vanilla_var.quantizer import PatchNum, VectorQuantizer2

HITS = "quantize.ema_vocab_hit_SV"


class VQVAE(nn.Module):
    """Images (B,3,H,W) in [-1,1] <-> token maps. With `test_mode` it is built frozen and in eval mode.

    Args:
        ch: channels of the finest resolution, a multiple of 32.
        quant_conv_ks: kernel size of the convolutions on both sides of the quantizer.
        others: see `VectorQuantizer2`.
    """

    def __init__(
        self,
        vocab_size: int = 4096,
        z_channels: int = 32,
        ch: int = 128,
        dropout: float = 0.0,
        beta: float = 0.25,
        using_znorm: bool = False,
        quant_conv_ks: int = 3,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        default_qresi_counts: int = 0,
        v_patch_nums: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        test_mode: bool = True,
    ) -> None:
        super().__init__()
        self.vocab_size = self.V = vocab_size
        self.Cvae = z_channels
        self.downsample = STRIDE
        self.test_mode = test_mode
        self.encoder = Encoder(ch, z_channels, dropout)
        self.decoder = Decoder(ch, z_channels, dropout)
        self.quantize = VectorQuantizer2(
            vocab_size, z_channels, using_znorm, beta, default_qresi_counts, v_patch_nums, quant_resi, share_quant_resi
        )
        self.quant_conv = nn.Conv2d(z_channels, z_channels, quant_conv_ks, padding=quant_conv_ks // 2)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, quant_conv_ks, padding=quant_conv_ks // 2)
        if test_mode:
            self.eval().requires_grad_(False)

    def encode(self, img_B3HW: Tensor) -> Tensor:
        """The latent (B,C,h,w) that the quantizer takes."""
        return self.quant_conv(self.encoder(img_B3HW))

    def decode(self, f_hat_BChw: Tensor) -> Tensor:
        """The image (B,3,H,W) of a latent, not clamped."""
        return self.decoder(self.post_quant_conv(f_hat_BChw))

    def forward(self, inp: Tensor, ret_usages: bool = False) -> tuple[Tensor, list[float] | None, Tensor]:
        """Reconstruction (B,3,H,W), not clamped; used codes in percent per scale or None; VQ loss."""
        f_hat, usages, vq_loss = self.quantize(self.encode(inp), ret_usages=ret_usages)
        return self.decode(f_hat), usages, vq_loss

    def fhat_to_img(self, f_hat: Tensor) -> Tensor:
        """The image of a latent, clamped to [-1,1]."""
        return self.decode(f_hat).clamp_(-1, 1)

    def _images(self, f_hats: list[Tensor] | Tensor) -> list[Tensor] | Tensor:
        return self.fhat_to_img(f_hats) if isinstance(f_hats, Tensor) else [self.fhat_to_img(f) for f in f_hats]

    def img_to_idxBl(self, inp_img_no_grad: Tensor, v_patch_nums: Sequence[PatchNum] | None = None) -> list[Tensor]:
        """Tokens of images: S times (B,l)."""
        return self.quantize.f_to_idxBl_or_fhat(self.encode(inp_img_no_grad), to_fhat=False, v_patch_nums=v_patch_nums)

    def idxBl_to_img(
        self, ms_idx_Bl: Sequence[Tensor], same_shape: bool, last_one: bool = False
    ) -> list[Tensor] | Tensor:
        """Images of tokens (S times (B,l), square maps); see `embed_to_img`."""
        sides = [round(idx_Bl.shape[1] ** 0.5) for idx_Bl in ms_idx_Bl]
        ms_h_BChw = [self.quantize.square_map(idx_Bl, pn) for idx_Bl, pn in zip(ms_idx_Bl, sides, strict=True)]
        return self.embed_to_img(ms_h_BChw, all_to_max_scale=same_shape, last_one=last_one)

    def embed_to_img(
        self, ms_h_BChw: Sequence[Tensor], all_to_max_scale: bool, last_one: bool = False
    ) -> list[Tensor] | Tensor:
        """Images of code vectors (S times (B,C,pn,pn)): one for each prefix, or with `last_one` that of the whole.

        With `all_to_max_scale` all have the full size, else prefix i has 16 pixels to a cell of token map i.
        """
        return self._images(self.quantize.embed_to_fhat(ms_h_BChw, all_to_max_scale, last_one))

    def img_to_reconstructed_img(
        self, x: Tensor, v_patch_nums: Sequence[PatchNum] | None = None, last_one: bool = False
    ) -> list[Tensor] | Tensor:
        """Images through the quantizer and back: one for each prefix, or with `last_one` that of all tokens."""
        f_hats = self.quantize.f_to_idxBl_or_fhat(self.encode(x), to_fhat=True, v_patch_nums=v_patch_nums)
        return self._images(f_hats[-1] if last_one else f_hats)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads as any module, but skips hit counts for another number of scales: own counts are unchanged."""
        own = self.quantize.ema_vocab_hit_SV
        if HITS in state_dict and len(state_dict[HITS]) != len(own):
            state_dict = {**state_dict, HITS: own}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
