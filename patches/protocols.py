"""The parts of upstream's models that the rest of the project may use, by upstream's names; mypy rejects others.

Upstream's classes, the stand-in's and the patched ones all have these interfaces. Code that needs more of a model (its blocks,
its layers) is a function in `patches`.

Shapes: B batch, L tokens of all scales, S scales, C width, Cvae latent channels, V codes, n latent cells a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from patches.focus_quantizer import PatchNums, Quantized

if TYPE_CHECKING:
    from refocus_ext.optics.pyramid import FocusPyramid


class Network(Protocol):
    """The interface of every model as an `nn.Module`."""

    training: bool

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...
    def requires_grad_(self, requires_grad: bool = True) -> Any: ...
    def to(self, *args: Any, **kwargs: Any) -> Any: ...


def as_module(network: Network) -> nn.Module:
    """The model typed as `nn.Module`, for functions that take any module."""
    return cast(nn.Module, network)


class Quantizer(Network, Protocol):
    """VectorQuantizer2."""

    record_hit: int

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    @property
    def Cvae(self) -> int: ...
    @property
    def v_patch_nums(self) -> tuple[int, ...]:
        """Side of each token map, coarse to fine; the last is n."""
        ...

    @property
    def embedding(self) -> nn.Embedding:
        """The codebook, (V, Cvae)."""
        ...

    def f_to_idxBl_or_fhat(
        self, f_BChw: Tensor | Sequence[Tensor], to_fhat: bool, v_patch_nums: PatchNums | None = None
    ) -> list[Tensor]:
        """Tokens, S times (B, pn*pn), or prefixes f_hat, S times (B,Cvae,n,n). A list of K focus targets needs `Focus`."""
        ...

    def idxBl_to_var_input(self, gt_ms_idx_Bl: list[Tensor]) -> Tensor:
        """Teacher-forcing input (B, L - first_l, Cvae) of tokens."""
        ...


class FocusedQuantizer(Quantizer, Protocol):
    """A quantizer under `Focus`; see `FocusQuantizer`."""

    @property
    def focus_pyramid(self) -> FocusPyramid: ...
    def quantize(self, T_K: Sequence[Tensor]) -> Quantized: ...


class VQVAE(Network, Protocol):
    """VQVAE."""

    @property
    def quantize(self) -> Quantizer: ...
    @property
    def Cvae(self) -> int: ...
    def img_to_idxBl(self, inp_img_no_grad: Tensor, v_patch_nums: PatchNums | None = None) -> list[Tensor]:
        """Tokens of images in [-1,1], S times (B, pn*pn)."""
        ...

    def img_to_reconstructed_img(self, x: Tensor, v_patch_nums: PatchNums | None = None, last_one: bool = False) -> Any:
        """Images of every prefix, S times (B,3,H,W) in [-1,1], or of the whole sequence."""
        ...

    def idxBl_to_img(self, ms_idx_Bl: list[Tensor], same_shape: bool, last_one: bool = False) -> Any: ...
    def fhat_to_img(self, f_hat: Tensor) -> Tensor:
        """Image (B,3,H,W) in [-1,1] of f_hat (B,Cvae,n,n)."""
        ...


class FocusedVQVAE(VQVAE, Protocol):
    """A VQVAE under `Focus`; see `FocusVQVAE`."""

    @property
    def quantize(self) -> FocusedQuantizer: ...
    @property
    def focus_pyramid(self) -> FocusPyramid: ...
    def encode_view(self, view_B3HW: Tensor) -> Tensor: ...
    def encode_targets(self, x_B3HW: Tensor) -> Tensor | list[Tensor]: ...
    def encode_states(self, x_B3HW: Tensor) -> list[Tensor]: ...
    def expand(self, latent_BCnn: Tensor) -> Tensor: ...
    def decode_state(self, f_hat_BChw: Tensor, state: int) -> Tensor: ...
    def decode(self, f_hat_BChw: Tensor) -> Tensor: ...


class VAR(Network, Protocol):
    """VAR."""

    cond_drop_rate: float  # share of labels dropped, in eval mode too

    @property
    def patch_nums(self) -> tuple[int, ...]: ...
    @property
    def begin_ends(self) -> list[tuple[int, int]]:
        """First token and end of each scale."""
        ...

    @property
    def L(self) -> int: ...
    @property
    def first_l(self) -> int:
        """Tokens of the first scale."""
        ...

    @property
    def C(self) -> int: ...
    @property
    def V(self) -> int: ...
    @property
    def Cvae(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def prog_si(self) -> int:
        """Scale of progressive training; negative without it."""
        ...

    def __call__(self, label_B: Tensor, x_BLCv_wo_first_l: Tensor) -> Tensor:
        """Teacher-forced logits (B,L,V)."""
        ...

    def get_logits(self, h_BLC: Tensor, cond_BD: Tensor) -> Tensor: ...
    @property
    def autoregressive_infer_cfg(self) -> Callable[..., Tensor]: ...


def device_of(network: Network) -> torch.device:
    """The device of its weights."""
    return next(network.parameters()).device
