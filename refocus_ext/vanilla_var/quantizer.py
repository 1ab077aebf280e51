"""The multi-scale residual quantizer: a latent becomes token maps of growing size, each coding what is still missing.

Shapes: B batch, C = Cvae latent channels, h, w latent cells, S token scales, l = pn*pn tokens of a scale, N = B*l,
V codes. "B C h w" in a name is the layout (`f_BChw`), "ms" a list over the scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as tdist
from torch.nn import functional as F

PatchNum = int | tuple[int, int]  # cells of a square token map's side, or (height, width)


class Phi(nn.Conv2d):
    """phi(h) = (1 - r) h + r conv(h): what a token map's upsampled codes pass before they are summed."""

    def __init__(self, embed_dim: int, quant_resi: float) -> None:
        super().__init__(embed_dim, embed_dim, 3, padding=1)
        self.resi_ratio = abs(quant_resi)

    def forward(self, h_BChw: Tensor) -> Tensor:
        return h_BChw * (1 - self.resi_ratio) + super().forward(h_BChw) * self.resi_ratio


def tick_index(position: float, count: int) -> int:
    """Which of `count` evenly spread phis is nearest to a scale's position in [0, 1]; the lower one on a tie."""
    margin = 1 / (3 if count == 4 else 2) / count
    ticks = np.linspace(margin, 1 - margin, count)
    return int(np.abs(ticks - position).argmin())


# The three banks below differ in the parameter names that stock checkpoints hold. All are indexed by position.


class OnePhi(nn.Module):
    """The same phi for every scale."""

    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.qresi = phi

    def __getitem__(self, position: float) -> nn.Module:
        return self.qresi


class SomePhis(nn.Module):
    """Neighbouring scales share a phi."""

    def __init__(self, phis: Sequence[nn.Module]) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)

    def __getitem__(self, position: float) -> nn.Module:
        return self.qresi_ls[tick_index(position, len(self.qresi_ls))]


class OwnPhis(nn.ModuleList):
    """As many phis as scales."""

    def __getitem__(self, position: float) -> nn.Module:  # type: ignore[override]
        return super().__getitem__(tick_index(position, len(self)))


def build_phi_bank(C: int, ratio: float, share: int, scales: int) -> OnePhi | SomePhis | OwnPhis:
    """The bank for upstream's `share_quant_resi`: 0 one phi for each scale, 1 a single phi, n > 1 n phis."""
    if share < 0:
        raise ValueError(f"share_quant_resi is {share}; it takes 0 (a phi for each scale), 1 or more (that many phis).")
    phis = [Phi(C, ratio) if abs(ratio) > 1e-6 else nn.Identity() for _ in range(share or scales)]
    if share == 1:
        return OnePhi(phis[0])
    return SomePhis(phis) if share else OwnPhis(phis)


def has_process_group() -> bool:
    return tdist.is_available() and tdist.is_initialized()


class VectorQuantizer2(nn.Module):
    """Codebook, phis and the walk over the scales, in both directions.

    Args:
        vocab_size: V.
        Cvae: C.
        using_znorm: compare directions (cosine) instead of distances.
        beta: weight of the commitment term in the VQ loss.
        default_qresi_counts: phis if `share_quant_resi` is 0; 0 means one for each scale.
        v_patch_nums: cells of each token map's side, from coarse to fine; the last is the latent's.
        quant_resi: r of `Phi`; 0 makes phi the identity.
        share_quant_resi: see `build_phi_bank`.
    """

    ema_vocab_hit_SV: Tensor

    def __init__(
        self,
        vocab_size: int,
        Cvae: int,
        using_znorm: bool,
        beta: float = 0.25,
        default_qresi_counts: int = 0,
        v_patch_nums: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
    ) -> None:
        super().__init__()
        self.vocab_size, self.Cvae, self.using_znorm, self.beta = vocab_size, Cvae, using_znorm, beta
        self.v_patch_nums = v_patch_nums
        self.quant_resi_ratio = quant_resi
        self.quant_resi = build_phi_bank(Cvae, quant_resi, share_quant_resi, default_qresi_counts or len(v_patch_nums))
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(v_patch_nums), vocab_size))
        self.record_hit = 0  # scales (not steps) counted so far
        self.embedding = nn.Embedding(vocab_size, Cvae)
        self.prog_si = -1  # progressive training: the last scale in use; -1 uses all

    @torch.no_grad()
    def eini(self, eini: float) -> None:
        """Initialises the codebook: truncated normal of that standard deviation; if negative, uniform in +-|eini|/V."""
        if eini > 0:
            nn.init.trunc_normal_(self.embedding.weight, std=eini)
        elif eini < 0:
            bound = abs(eini) / self.vocab_size
            self.embedding.weight.uniform_(-bound, bound)

    # ------------------------------------------------------------------ pieces

    @torch.no_grad()
    def nearest_code(self, z_NC: Tensor) -> Tensor:
        """Index (N,) of the code nearest to each vector; the lowest index on a tie."""
        codes_VC = self.embedding.weight
        if self.using_znorm:
            return (F.normalize(z_NC, dim=-1) @ F.normalize(codes_VC.T, dim=0)).argmax(dim=1)
        # |z - e|^2 = |z|^2 + |e|^2 - 2 z e
        squares_NV = z_NC.square().sum(dim=1, keepdim=True) + codes_VC.square().sum(dim=1)
        return squares_NV.addmm_(z_NC, codes_VC.T, alpha=-2).argmin(dim=1)

    def contribution(self, h_BChw: Tensor, si: int, scales: int, *, dense: bool = False) -> Tensor:
        """A token map's code vectors as its share of f_hat: upsampled to the latent's size, through the scale's phi.

        `dense` lays the map out as B,C,h,w before the convolution, as the encoding side does. Code vectors come out of
        the codebook channels-last, and a convolution may round differently in another layout.
        """
        if si != scales - 1:
            n = self.v_patch_nums[-1]
            h_BChw = F.interpolate(h_BChw, size=(n, n), mode="bicubic")
        phi = self.quant_resi[si / (scales - 1)]
        return phi(h_BChw.contiguous() if dense else h_BChw)

    def code_map(self, idx: Tensor, size: tuple[int, int]) -> Tensor:
        """Code vectors (B,C,*size) of indices (B,l) or (N,)."""
        height, width = size
        return self.embedding(idx.reshape(-1, height, width)).permute(0, 3, 1, 2)

    def square_map(self, idx_Bl: Tensor, pn: int) -> Tensor:
        """Code vectors (B,C,pn,pn) of indices (B,pn*pn).

        Unflattened last, unlike `code_map`: for one image the strides of a 1 x 1 map choose phi's layout and last bits.
        """
        return self.embedding(idx_Bl).transpose(1, 2).unflatten(2, (pn, pn))

    def residual_walk(self, f_BChw: Tensor, sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """From coarse to fine: the indices (N,) of each scale and its contribution (B,C,h,w), subtracted from the rest.

        Gradients reach codebook and phi through the contributions, never the latent.
        """
        C, finest = f_BChw.shape[1], len(sizes) - 1
        rest = f_BChw.detach().clone()
        for si, size in enumerate(sizes):
            pooled = rest if si == finest else F.interpolate(rest, size=size, mode="area")
            idx_N = self.nearest_code(pooled.permute(0, 2, 3, 1).reshape(-1, C))
            added = self.contribution(self.code_map(idx_N, size), si, len(sizes), dense=True)
            rest.sub_(added.detach())
            yield idx_N, added

    # ------------------------------------------------------------------ training the VQVAE

    def forward(self, f_BChw: Tensor, ret_usages: bool = False) -> tuple[Tensor, list[float] | None, Tensor]:
        """Quantizes a latent with gradients; in train mode code hits are counted, over all processes if there are any.

        Returns:
            f_hat (B,C,h,w) with the straight-through gradient, used codes in percent for each scale or None, VQ loss.
        """
        f_BChw = f_BChw.float()
        target = f_BChw.detach()
        f_hat, loss = torch.zeros_like(target), target.new_zeros(())
        sizes = [(pn, pn) for pn in self.v_patch_nums]
        # Upstream turns off CUDA's autocast and no other device's.
        with torch.autocast("cuda", enabled=False):
            for si, (idx_N, added) in enumerate(self.residual_walk(f_BChw, sizes)):
                f_hat = f_hat + added
                if self.training:
                    self.count_hits(si, idx_N)
                commitment, codebook = F.mse_loss(f_hat.detach(), f_BChw), F.mse_loss(f_hat, target)
                loss = loss + (commitment * self.beta + codebook)
            loss = loss * (1.0 / len(sizes))
            passed_through = (f_hat.detach() - target) + f_BChw
        return passed_through, self.usages(f_BChw) if ret_usages else None, loss

    @torch.no_grad()
    def count_hits(self, si: int, idx_N: Tensor) -> None:
        """Enters one scale's indices into its moving average of code hits."""
        hits_V = idx_N.bincount(minlength=self.vocab_size).float()
        if has_process_group():
            tdist.all_reduce(hits_V)
        if self.record_hit == 0:
            self.ema_vocab_hit_SV[si].copy_(hits_V)
        else:
            kept, new = (0.9, 0.1) if self.record_hit < 100 else (0.99, 0.01)
            self.ema_vocab_hit_SV[si].mul_(kept).add_(hits_V * new)
        self.record_hit += 1

    def usages(self, f_BChw: Tensor) -> list[float]:
        """Percent of the codes each scale hits at least 8% as often as an even spread over a full-size map would."""
        B, _, H, W = f_BChw.shape
        processes = tdist.get_world_size() if has_process_group() else 1
        margin = processes * float(B * H * W) / self.vocab_size * 0.08
        return [(hits_V >= margin).float().mean().item() * 100 for hits_V in self.ema_vocab_hit_SV]

    # ------------------------------------------------------------------ latent -> tokens or prefixes

    def f_to_idxBl_or_fhat(
        self, f_BChw: Tensor, to_fhat: bool, v_patch_nums: Sequence[PatchNum] | None = None
    ) -> list[Tensor]:
        """Tokens (S times (B,l)) of a latent, or with `to_fhat` the prefixes f_hat (S times (B,C,h,w)) they decode to.

        Args:
            v_patch_nums: other token maps than the quantizer's own; the last must have the latent's size.
        """
        B, _, H, W = f_BChw.shape
        sizes = [(pn, pn) if isinstance(pn, int) else (pn[0], pn[1]) for pn in v_patch_nums or self.v_patch_nums]
        assert sizes[-1] == (H, W), f"the last token map is {sizes[-1]} cells but the latent is {(H, W)}."
        walk = islice(self.residual_walk(f_BChw, sizes), None if self.prog_si < 0 else self.prog_si + 1)
        if not to_fhat:
            return [idx_N.reshape(B, -1) for idx_N, _ in walk]
        f_hat = torch.zeros_like(f_BChw)
        return [f_hat.add_(added).clone() for _, added in walk]

    # ------------------------------------------------------------------ tokens -> prefixes, inputs

    def embed_to_fhat(
        self, ms_h_BChw: Sequence[Tensor], all_to_max_scale: bool = True, last_one: bool = False
    ) -> list[Tensor] | Tensor:
        """Prefixes f_hat of code vectors (S times (B,C,pn,pn)), or with `last_one` the full sum alone.

        Args:
            all_to_max_scale: sum at the latent's size, as in training; False lets the sum grow with the token maps.
        """
        prefixes = list(self.prefixes_at_full_size(ms_h_BChw) if all_to_max_scale else self.prefixes_growing(ms_h_BChw))
        return prefixes[-1] if last_one else prefixes

    def prefixes_at_full_size(self, ms_h_BChw: Sequence[Tensor]) -> Iterator[Tensor]:
        """S times (B,C,n,n)."""
        B, n, scales = ms_h_BChw[0].shape[0], self.v_patch_nums[-1], len(self.v_patch_nums)
        f_hat = ms_h_BChw[0].new_zeros(B, self.Cvae, n, n, dtype=torch.float32)
        for si in range(scales):
            f_hat = f_hat + self.contribution(ms_h_BChw[si], si, scales)
            yield f_hat

    def prefixes_growing(self, ms_h_BChw: Sequence[Tensor]) -> Iterator[Tensor]:
        """S times (B,C,pn,pn): the sum is upsampled from one scale to the next, its parts never."""
        B, pn, scales = ms_h_BChw[0].shape[0], self.v_patch_nums[0], len(self.v_patch_nums)
        f_hat = ms_h_BChw[0].new_zeros(B, self.Cvae, pn, pn, dtype=torch.float32)
        for si, pn in enumerate(self.v_patch_nums):
            phi = self.quant_resi[si / (scales - 1)]
            f_hat = F.interpolate(f_hat, size=(pn, pn), mode="bicubic") + phi(ms_h_BChw[si])
            yield f_hat

    def idxBl_to_var_input(self, gt_ms_idx_Bl: Sequence[Tensor]) -> Tensor | None:
        """Teacher-forcing input (B, L - first l, C), fp32: before each scale but the first, the prefix, pooled."""
        B, n, scales = gt_ms_idx_Bl[0].shape[0], self.v_patch_nums[-1], len(self.v_patch_nums)
        known = scales - 1 if self.prog_si < 0 else min(self.prog_si, scales - 1)
        f_hat = torch.zeros(B, self.Cvae, n, n, device=gt_ms_idx_Bl[0].device)
        inputs = []
        for si in range(known):
            pn = self.v_patch_nums[si]
            h_BChw = self.square_map(gt_ms_idx_Bl[si], pn)
            f_hat, pooled = self.get_next_autoregressive_input(si, scales, f_hat, h_BChw)
            inputs.append(pooled.flatten(2).transpose(1, 2))
        return torch.cat(inputs, dim=1) if inputs else None

    def get_next_autoregressive_input(self, si: int, SN: int, f_hat: Tensor, h_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Adds scale si's code vectors (B,C,pn,pn) to f_hat in place.

        Returns:
            f_hat (B,C,n,n), and f_hat pooled to the next token map's size (f_hat itself after the last scale).
        """
        f_hat.add_(self.contribution(h_BChw, si, SN))
        if si == SN - 1:
            return f_hat, f_hat
        pn = self.v_patch_nums[si + 1]
        return f_hat, F.interpolate(f_hat, size=(pn, pn), mode="area")
