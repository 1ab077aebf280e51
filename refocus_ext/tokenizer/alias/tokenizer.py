"""The alias tokenizer Q_A: a small convolutional VQ autoencoder on the alias residuals A_k of the focus pyramid.

One network serves the alias states k = 0 .. K-2 (A_{K-1} is zero and never tokenized). The teacher of stage 2 reads
its tokens; its decoder is used in training only.

Shapes: B images, C = code_dim, H_k = image_size / s_k pixels, h = w = H_k / stride cells, l_k = h * w tokens, N = any
number of vectors. `_K` lists have K-1 entries. Alias views are in units of the image ([-1,1]).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as tdist
from torch.nn import functional as F

from patches.protocols import VQVAE
from refocus_ext.tokenizer.alias.explained_variance import _variance
from refocus_ext.tokenizer.alias.geometry import AliasGeometry
from refocus_ext.tokenizer.alias.network import _decoder, _encoder
from refocus_ext.vector_quantization import kmeans, nearest_code, straight_through

SMALLEST_RMS = 1e-3  # of an alias view, image units: an eighth of the step between 8-bit grey levels
MEMORY = 1000  # training steps that the running power averages over
SAMPLE_BATCHES = 100  # training batches that the sample of `initialise` counts as in the running power
INITIAL_POINTS = 8192  # patches per state that the initialisation uses


# ------------------------------------------------------------------------------------------------ tokenizer


class AliasQuantized(NamedTuple):
    """`z_q_BChw` has the value of the code vectors and the gradient of z; commitment trains z only, codebook the codes only."""

    z_q_BChw: Tensor
    idx_Bhw: Tensor
    commitment: Tensor
    codebook: Tensor


@dataclass
class AliasOutput:
    """One training pass: its loss and, detached, everything the loop reads."""

    loss: Tensor
    terms: dict[str, Tensor]  # recon, commitment, codebook: means over the states
    idx_K: list[Tensor]  # (B, l_k)
    recon_K: list[Tensor]  # (B, 3, H_k, H_k), image units
    points_K: list[Tensor]  # (B * l_k, C), what was quantized: the pool of `CodeRevival.revive`
    explained_K: list[Tensor]  # explained variance of this batch


class AliasTokenizer(nn.Module):
    """Q_A: alias views of K-1 focus states -> tokens of one codebook, and, for training, back.

    A view is divided by its state's running RMS, so that the network sees unit variance. Encoder and decoder are each a
    linear map of stride x stride patches plus a convolutional correction that starts at zero: `initialise` makes the
    linear part the patches' principal axes and the codebook their k-means, so that training starts from
    patch coding, not from noise.

    `codebook="shared"` keeps a reference to a codebook owned by another module: it is neither in `parameters()` nor
    in `state_dict()` of this module; its owner's optimizer must step after this module's backward. A deep copy (an
    EMA, say) copies it too: give the copy its codebook with `share`.

    Args:
        geometry: shapes.
        codebook: the structure codebook (codes, code_dim), for geometry.codebook == "shared" and only then.
        commitment: beta of the loss. Below 1 the latents diverge from their codes, because nine bits per patch leave four fifths
            of the variance and the straight-through gradient is mostly noise.

    Raises:
        ValueError: a shared codebook is missing, not expected, or of another shape.
    """

    power_K: Tensor
    seen: Tensor

    def __init__(
        self, geometry: AliasGeometry, codebook: nn.Embedding | None = None, *, commitment: float = 1.0
    ) -> None:
        super().__init__()
        self.geometry, self.commitment = geometry, commitment
        patch, stride, dim = 3, geometry.stride, geometry.code_dim
        self.patch = nn.Conv2d(patch, dim, stride, stride=stride)
        self.unpatch = nn.ConvTranspose2d(dim, patch, stride, stride=stride)
        self.encoder, self.decoder = _encoder(geometry), _decoder(geometry)
        self.codebook = nn.Embedding(geometry.codes, dim) if geometry.codebook == "own" else None
        self.register_buffer("power_K", torch.ones(geometry.alias_states))  # mean square of A_k, image units squared
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))  # batches behind power_K
        self._shared: tuple[nn.Embedding, ...] = ()
        if codebook is not None or self.codebook is None:
            self.share(codebook)

    def share(self, codebook: nn.Embedding | None) -> None:
        """Sets the shared codebook; kept in a tuple, because `nn.Module` would register a plain attribute."""
        g = self.geometry
        if g.codebook != "shared":
            raise ValueError(
                'a codebook was given to an alias tokenizer with codebook "own"; use "shared" or give none'
            )
        if codebook is None:
            raise ValueError('codebook "shared" needs the structure codebook (an nn.Embedding); give it, or use "own"')
        shape = (codebook.num_embeddings, codebook.embedding_dim)
        if shape[0] % g.codes or shape[1] != g.code_dim:
            raise ValueError(
                f"the shared codebook is {shape[0]} codes of {shape[1]}, the alias geometry has {g.codes} of "
                f"{g.code_dim}; set codes and code_dim to the codebook's"
            )
        self._shared = (codebook,)

    @property
    def embedding(self) -> nn.Embedding:
        """The codebook in use, own or shared; `CodeRevival` needs this and `vocab_size`."""
        return self._shared[0] if self.codebook is None else self.codebook

    @property
    def table(self) -> Tensor:
        """The vectors of the alias tokens, (codes, C): the codebook, or evenly spread entries of a larger shared one."""
        step = self.spacing
        return self.embedding.weight if step == 1 else self.embedding.weight[::step]

    @property
    def spacing(self) -> int:
        """Token i is entry i * spacing of the codebook."""
        return self.embedding.num_embeddings // self.geometry.codes

    @property
    def vocab_size(self) -> int:
        return self.geometry.codes

    def rms(self, state: int) -> Tensor:
        """Running RMS of the state's alias view, image units, ()."""
        return self.power_K[state].sqrt().clamp_min(SMALLEST_RMS)

    # ------------------------------------------------------------------ parts

    def encode(self, A_BCHW: Tensor, state: int) -> Tensor:
        """Latent (B, C, h, w) of the alias view (B, 3, H_k, H_k) of focus state index `state`.

        Raises:
            ValueError: an unknown state, or a view of another size.
        """
        self._check_state(state)
        size = self.geometry.view_sizes[state]
        if A_BCHW.ndim != 4 or tuple(A_BCHW.shape[1:]) != (3, size, size):
            raise ValueError(
                f"the alias view of focus state {state + 1} is (B, 3, {size}, {size}), got {tuple(A_BCHW.shape)}; "
                "pass the view as the pyramid returns it"
            )
        unit = A_BCHW / self.rms(state)
        return self.patch(unit) + self.encoder(unit, state)

    def quantize(self, z_BChw: Tensor) -> AliasQuantized:
        """The nearest code of each latent vector, in fp32 under any autocast; ties go to the lowest index."""
        with torch.autocast(device_type=z_BChw.device.type, enabled=False):
            z = z_BChw.float()
            points_NC = _points(z.detach())
            table_VC = self.table
            idx_Bhw = nearest_code(points_NC, table_VC.detach()).view(len(z), *z.shape[-2:])
            e = F.embedding(idx_Bhw, table_VC).permute(0, 3, 1, 2)
            return AliasQuantized(straight_through(e, z), idx_Bhw, F.mse_loss(z, e.detach()), F.mse_loss(e, z.detach()))

    def decode(self, z_q_BChw: Tensor, state: int) -> Tensor:
        """The alias view (B, 3, H_k, H_k) decoded from code vectors (B, C, h, w), fp32, image units.

        Raises:
            ValueError: an unknown state.
        """
        self._check_state(state)
        correction = F.pixel_shuffle(self.decoder(z_q_BChw, state), self.geometry.stride // 2)
        return (self.unpatch(z_q_BChw) + correction).float() * self.rms(state)

    def _check_state(self, state: int) -> None:
        if not 0 <= state < self.geometry.alias_states:
            raise ValueError(
                f"focus state index {state} has no alias tokens: they belong to 0 .. {self.geometry.alias_states - 1}, "
                "the sharp state has no alias residual"
            )

    # ------------------------------------------------------------------ tokens

    @torch.no_grad()
    def tokens(self, alias_K: Sequence[Tensor]) -> list[Tensor]:
        """K-1 alias views (B, 3, H_k, H_k) -> K-1 token maps (B, l_k), int64, row by row."""
        self._check_count(alias_K)
        return [self.quantize(self.encode(A, k)).idx_Bhw.flatten(1) for k, A in enumerate(alias_K)]

    @torch.no_grad()
    def reconstruct(self, idx_K: Sequence[Tensor]) -> list[Tensor]:
        """K-1 token maps (B, l_k) -> the decoded alias views (B, 3, H_k, H_k), image units."""
        self._check_count(idx_K)
        z_K = [
            self.codebook_vectors(idx).unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
            for idx, grid in zip(idx_K, self.geometry.grids, strict=True)
        ]
        return [self.decode(z, k) for k, z in enumerate(z_K)]

    def codebook_vectors(self, idx: Tensor) -> Tensor:
        """Code vectors (..., C) of tokens (...), without gradient."""
        return F.embedding(idx, self.table.detach())

    def _check_count(self, views: Sequence[Tensor]) -> None:
        if len(views) != self.geometry.alias_states:
            raise ValueError(
                f"{len(views)} alias views were given; {self.geometry.states} focus states have "
                f"{self.geometry.alias_states}: all but the sharp one"
            )

    # ------------------------------------------------------------------ training

    def forward(self, alias_K: Sequence[Tensor]) -> AliasOutput:
        """Codes and decodes K-1 noise-free alias views; in train mode it first updates the running power.

        recon is the squared error divided by the state's running power: 1 - EV of the state, so that all states count
        equally. The power is a running mean so that the minimum is that of the reported explained variance.
        """
        self._check_count(alias_K)
        if self.training:
            self._update_power(alias_K)
        out = AliasOutput(torch.zeros(()), {}, [], [], [], [])
        rows = [self._code_state(A, k, out) for k, A in enumerate(alias_K)]
        recon, commitment, codebook = torch.stack(rows).mean(0)
        out.loss = recon + self.commitment * commitment + codebook
        out.terms = {"recon": recon.detach(), "commitment": commitment.detach(), "codebook": codebook.detach()}
        return out

    def _code_state(self, A: Tensor, state: int, out: AliasOutput) -> Tensor:
        """(recon, commitment, codebook) of one state, (3,); what the loop reads is appended to `out`."""
        z = self.encode(A, state)
        q = self.quantize(z)
        A_hat = self.decode(q.z_q_BChw, state)
        error = F.mse_loss(A_hat, A.float())
        out.idx_K.append(q.idx_Bhw.flatten(1))
        out.recon_K.append(A_hat.detach())
        out.points_K.append(_points(z.detach().float()))
        out.explained_K.append(1 - error.detach() / _variance(A.float()))
        return torch.stack([error / self.rms(state).square(), q.commitment, q.codebook])

    @torch.no_grad()
    def _update_power(self, alias_K: Sequence[Tensor]) -> None:
        """A mean over the first batches, then a moving average; equal on all processes, ignores NaN and inf."""
        power_K = torch.stack([A.float().square().mean() for A in alias_K])
        if tdist.is_available() and tdist.is_initialized():
            tdist.all_reduce(power_K)
            power_K /= tdist.get_world_size()
        finite = power_K.isfinite().all()
        self.seen += finite
        share = 1 / self.seen.clamp(1, MEMORY)
        self.power_K.copy_(torch.where(finite, self.power_K.lerp(power_K, share), self.power_K))

    # ------------------------------------------------------------------ initialisation

    @torch.no_grad()
    def initialise(self, alias_K: Sequence[Tensor], generator: torch.Generator) -> None:
        """Power, linear maps and own codebook from a sample: patch coding by k-means on the principal axes.

        A shared codebook stays as it is (initialise it before): the axes are scaled to its spread, and the linear
        decoder is fitted to the codes of the patches. Several processes need the same sample and generator state.

        Args:
            alias_K: alias views of a sample of images, K-1 times (N, 3, H_k, H_k); a few hundred images are enough.
        """
        self._check_count(alias_K)
        self.power_K.copy_(torch.stack([A.float().square().mean() for A in alias_K]))
        self.seen.fill_(SAMPLE_BATCHES)
        patches_NP = torch.cat([self._patches(A / self.rms(k), generator) for k, A in enumerate(alias_K)])
        # unit gain per pixel, so that commitment in the latent has about the weight of recon in the image
        gain = math.sqrt(self.geometry.code_dim / self.geometry.patch_dim)
        map_CP = gain * _principal_axes(patches_NP)[: self.geometry.code_dim]
        table_VC = self.table.detach()
        if self.codebook is None:
            map_CP *= table_VC.square().mean().sqrt() / (patches_NP @ map_CP.T).square().mean().sqrt()
        else:
            table_VC.copy_(kmeans(patches_NP @ map_CP.T, self.vocab_size, generator))
        codes_NC = table_VC[nearest_code(patches_NP @ map_CP.T, table_VC)]
        self._set_linear(map_CP, _least_squares(codes_NC, patches_NP))

    def _patches(self, unit_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """Flattened stride x stride patches of a view, at most INITIAL_POINTS of them, (N, patch_dim)."""
        patches_NP = _points(F.pixel_unshuffle(unit_BCHW.float(), self.geometry.stride))
        picks = torch.randperm(len(patches_NP), generator=generator)[:INITIAL_POINTS]
        return patches_NP[picks.to(patches_NP.device)]

    def _set_linear(self, map_CP: Tensor, inverse_CP: Tensor) -> None:
        """Makes `patch` x -> map x and `unpatch` z -> inverse^T z."""
        for layer, matrix in ((self.patch, map_CP), (self.unpatch, inverse_CP)):
            layer.weight.copy_(matrix.reshape(layer.weight.shape))
            assert layer.bias is not None
            layer.bias.zero_()


def _points(z_BChw: Tensor) -> Tensor:
    """One row per cell, (B * h * w, C)."""
    return z_BChw.permute(0, 2, 3, 1).reshape(-1, z_BChw.shape[1])


def _principal_axes(points_NC: Tensor) -> Tensor:
    """Orthonormal rows (C, C), largest second moment first."""
    return torch.linalg.eigh(points_NC.T @ points_NC).eigenvectors.flip(1).T


def _least_squares(inputs_NC: Tensor, targets_NP: Tensor) -> Tensor:
    """The matrix M (C, P) of least |inputs M - targets|^2, with a ridge for axes on which the inputs are zero."""
    gram = inputs_NC.T @ inputs_NC
    ridge = (1e-3 * gram.diagonal().mean()).clamp_min(1e-12) * torch.eye(len(gram), device=gram.device)
    return torch.linalg.solve(gram + ridge, inputs_NC.T @ targets_NP)


def build_alias(geometry: AliasGeometry, vae: VQVAE, device: torch.device | str) -> AliasTokenizer:
    """An alias tokenizer, on the structure codebook if the geometry says so."""
    shared = vae.quantize.embedding if geometry.codebook == "shared" else None
    return AliasTokenizer(geometry, shared).to(device)
