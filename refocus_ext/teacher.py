"""The teacher: the student's own VAR weights, with alias-gate cross-attention (AG-XAttn) in its last M blocks.

Shapes: B batch, L structure tokens in S scales, T alias tokens in K-1 states (l_k = grid_k^2 each), C width of the VAR,
Ca length of an alias code vector, H heads of c channels, d_h = H c inner width, V codes. Focus states are indexed from
0, blurriest first; the sharp state K-1 has no alias tokens. `_K` lists have K-1 entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patches.instance import patched
from patches.teacher_block import Recording, StudentPass, attention_half, detached_call, detached_logits, ffn_half
from patches.upstream import pristine_initializers

MASKS = ("causal", "privileged")
HEAD = 64  # channels of an attention head, as in VAR
MEAN_BATCHES = 100  # batches that the running mean of E_a reaches back


@dataclass(frozen=True)
class TeacherGeometry:
    """What fixes a teacher's shapes and what its queries may see; it travels with the weights.

    Args:
        width: C of the VAR.
        code_dim: Ca of the alias tokenizer.
        grids: cells along one side of each alias state, blurriest first.
        patch_nums: token map sizes of the VAR.
        states: g(i), the focus state that serves each scale.
        blocks: M, how many of the last blocks run twice.
        mask: "causal": scale i sees the alias tokens of states <= g(i-1); "privileged": <= g(i).
        alias_scales: only the last so many scales see alias tokens; None: all that the mask lets.

    Raises:
        ValueError: a value outside these limits.

    >>> TeacherGeometry(width=1024).visible_states
    (0, 1, 1, 2, 2, 3, 3, 3, 3, 3)
    """

    width: int
    code_dim: int = 32
    grids: tuple[int, ...] = (4, 8, 16)
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    states: tuple[int, ...] = (0, 0, 1, 1, 2, 2, 2, 3, 3, 3)
    blocks: int = 2
    mask: str = "causal"
    alias_scales: int | None = None

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise ValueError(f"the teacher's inner width is half the VAR's: width {self.width} must be even")
        if self.blocks < 1:
            raise ValueError(f"{self.blocks} teacher blocks; at least 1 block must run twice")
        if self.mask not in MASKS:
            raise ValueError(f"unknown alias mask {self.mask!r}; choose one of {', '.join(MASKS)}")
        if not self.grids or min(self.grids) < 1:
            raise ValueError(f"alias grids {self.grids} must be one or more whole numbers of at least 1")
        if len(self.states) != len(self.patch_nums):
            raise ValueError(f"{len(self.states)} states were given for {len(self.patch_nums)} token scales")
        if list(self.states) != sorted(self.states) or not 0 <= self.states[0] <= self.states[-1] <= len(self.grids):
            raise ValueError(f"states {self.states} of the scales must rise within 0 .. {len(self.grids)}")
        if self.alias_scales is not None and not 1 <= self.alias_scales <= len(self.patch_nums):
            raise ValueError(f"alias_scales {self.alias_scales} is not within 1 .. {len(self.patch_nums)} token scales")

    @property
    def tokens(self) -> tuple[int, ...]:
        """l_k, alias tokens of each state."""
        return tuple(grid * grid for grid in self.grids)

    @property
    def inner(self) -> int:
        """d_h = C / 2."""
        return self.width // 2

    @property
    def heads(self) -> int:
        """d_h / 64 (at least 1; where that does not divide d_h, the next smaller number that does)."""
        most = max(1, self.inner // HEAD)
        return next(heads for heads in range(most, 0, -1) if self.inner % heads == 0)

    @property
    def visible_states(self) -> tuple[int, ...]:
        """For each scale how many alias states, counted from the blurriest, its queries see."""
        ends = [min(state + 1, len(self.grids)) for state in self.states]
        counts = ends if self.mask == "privileged" else [0, *ends[:-1]]
        first = len(counts) - (self.alias_scales or len(counts))
        return tuple(count if i >= first else 0 for i, count in enumerate(counts))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, to travel with a checkpoint; `TeacherGeometry.from_dict` takes them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TeacherGeometry:
        """The geometry that `to_dict` described, also after a trip through JSON."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**values)


def alias_visibility(geometry: TeacherGeometry) -> Tensor:
    """(L,T) bool: whether a query may see an alias token (the null slot, which all see, is not among them).

    >>> alias_visibility(TeacherGeometry(64, grids=(1, 2), patch_nums=(1, 2, 4), states=(0, 1, 2)))[[0, 1, 5]].int()
    tensor([[0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0],
            [1, 1, 1, 1, 1]], dtype=torch.int32)
    """
    state_T = torch.arange(len(geometry.grids)).repeat_interleave(torch.tensor(geometry.tokens))
    lengths = torch.tensor([pn * pn for pn in geometry.patch_nums])
    count_L = torch.tensor(geometry.visible_states).repeat_interleave(lengths)
    return state_T[None, :] < count_L[:, None]


def cell_positions(grid: int, frequencies: int) -> Tensor:
    """(grid^2, 4 frequencies): sin and cos of pi m u, m = 1 .. frequencies, of each cell's centre u = (x, y) in (0,1)^2.

    The coordinates are the image's: cells of two grids that lie at one place have one position. With as many
    frequencies as the finest grid has cells, any function of a row or a column is linear in them (the cosines are the DCT).
    """
    centre_g = (torch.arange(grid) + 0.5) / grid
    phase_gm = math.pi * centre_g[:, None] * torch.arange(1, frequencies + 1)
    wave_gf = torch.cat((phase_gm.sin(), phase_gm.cos()), dim=1)
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat((wave_gf[x.flatten()], wave_gf[y.flatten()]), dim=1)


class EmbeddedAliases(NamedTuple):
    """What AG-XAttn reads of a batch's alias tokens."""

    key_BTC: Tensor  # E_a
    value_BTC: Tensor  # E_a less its mean over images


class AliasEmbedding(nn.Module):
    """E_a: LayerNorm(W [code vector, position] + state embedding), (B,T,C) of K-1 code vector maps (B,l_k,Ca).

    The norm has no parameters; it makes the scale of the codebook irrelevant to the attention's logits.

    Values are E_a less its running mean over images, place by place, so that the teacher can add what an image's aliases
    say and not what is true of every image. With whole values a new teacher learns the tokens' frequencies through them,
    a constant vector longer than the student's features, and feature distillation (eq. 13) holds the student there, where
    all tokens look alike (docs/measured.md). The mean moves in `follow`, never in `forward`.
    """

    position_TF: Tensor
    state_T: Tensor
    mean_TC: Tensor
    batches: Tensor

    def __init__(self, geometry: TeacherGeometry) -> None:
        super().__init__()
        self.tokens = geometry.tokens
        frequencies = max(geometry.grids)
        self.project = nn.Linear(geometry.code_dim + 4 * frequencies, geometry.width)
        self.state = nn.Embedding(len(geometry.grids), geometry.width)
        nn.init.trunc_normal_(self.state.weight, std=0.02)
        position_TF = torch.cat([cell_positions(grid, frequencies) for grid in geometry.grids])
        self.register_buffer("position_TF", position_TF, persistent=False)
        state_T = torch.arange(len(geometry.grids)).repeat_interleave(torch.tensor(geometry.tokens))
        self.register_buffer("state_T", state_T, persistent=False)
        self.register_buffer("mean_TC", torch.zeros(len(state_T), geometry.width))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, alias_K: Sequence[Tensor]) -> EmbeddedAliases:
        alias_BTC = self.embedded(alias_K)
        return EmbeddedAliases(alias_BTC, alias_BTC - self.mean_TC)

    def embedded(self, alias_K: Sequence[Tensor]) -> Tensor:
        """E_a, (B,T,C)."""
        found = tuple(alias.shape[1] for alias in alias_K)
        if found != self.tokens:
            raise ValueError(f"alias maps of {found} tokens were given; this teacher was built for {self.tokens}")
        code_BTC = torch.cat(list(alias_K), dim=1).detach()
        position_BTF = self.position_TF.to(code_BTC.dtype).expand(code_BTC.shape[0], -1, -1)
        embedded_BTC = self.project(torch.cat((code_BTC, position_BTF), dim=-1)) + self.state(self.state_T)
        return F.layer_norm(embedded_BTC, embedded_BTC.shape[-1:])

    @torch.no_grad()
    def mean(self, alias_K: Sequence[Tensor]) -> Tensor:
        """(T,C), the mean of E_a over a batch."""
        return self.embedded(alias_K).mean(0)

    @torch.no_grad()
    def follow(self, mean_TC: Tensor) -> None:
        """Counts one more batch mean: a plain average of the first `MEAN_BATCHES`, then an exponential one."""
        self.batches += 1
        weight = 1 / self.batches.clamp(max=MEAN_BATCHES)
        self.mean_TC += weight * (mean_TC - self.mean_TC)


class AliasGateCrossAttention(nn.Module):
    """Z = X + gate(X) * W_O Attn(W_Q X, W_K E_a(a), W_V (E_a(a) - mean)), all of X read through a LayerNorm.

    gate = sigmoid(linear), in [0,1]^C and 1/2 at first. W_O starts at zero and has no bias. A null slot with a learned
    key and a zero value takes the attention of a query that finds nothing, and all of it where a query sees no alias
    token: such a query is returned as it is.
    """

    def __init__(self, geometry: TeacherGeometry) -> None:
        super().__init__()
        C, inner = geometry.width, geometry.inner
        self.heads = geometry.heads
        self.norm = nn.LayerNorm(C, eps=1e-6)
        self.to_gate = nn.Linear(C, C)
        self.to_q = nn.Linear(C, inner, bias=False)
        self.to_k = nn.Linear(C, inner, bias=False)
        self.to_v = nn.Linear(C, inner, bias=False)
        self.to_out = nn.Linear(inner, C, bias=False)
        self.null_key = nn.Parameter(torch.zeros(inner))
        nn.init.zeros_(self.to_gate.weight)
        nn.init.zeros_(self.to_gate.bias)
        nn.init.zeros_(self.to_out.weight)

    def gate(self, x_BLC: Tensor) -> Tensor:
        """(B,L,C) in [0,1]."""
        return self.to_gate(self.norm(x_BLC)).sigmoid()

    def forward(self, x_BLC: Tensor, aliases: EmbeddedAliases, visible_LN: Tensor) -> Tensor:
        """(B,L,C) -> (B,L,C). `visible_LN` (L,1+T) is bool, the null slot first and always True."""
        seen_BLC = self.norm(x_BLC)
        q, k, v = self.to_q(seen_BLC), self.to_k(aliases.key_BTC), self.to_v(aliases.value_BTC)
        B = x_BLC.shape[0]
        k = torch.cat((self.null_key.to(k.dtype).expand(B, 1, -1), k), dim=1)
        v = torch.cat((v.new_zeros(B, 1, v.shape[-1]), v), dim=1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        out_BHLc = F.scaled_dot_product_attention(q, k, v, attn_mask=visible_LN)
        update_BLC = self.to_gate(seen_BLC).sigmoid() * self.to_out(out_BHLc.transpose(1, 2).flatten(2))
        return x_BLC + update_BLC.to(x_BLC.dtype)


class TeacherOutput(NamedTuple):
    """Both passes of one step; student entries carry gradient for the VAR alone, teacher entries for the teacher alone."""

    student_logits: Tensor  # (B,L,V), fp32
    teacher_logits: Tensor  # (B,L,V), fp32
    student_features: list[Tensor]  # M times (B,L,C), outputs of the last M blocks
    teacher_features: list[Tensor]


def record(
    var: Any,
    label_B: Tensor,
    x_BLCv_wo_first_l: Tensor,
    blocks: int,
    run: Callable[..., Tensor] | None = None,
    defer_head: bool = False,
) -> StudentPass:
    """VAR's own teacher-forced pass, with what its last `blocks` blocks (0: none) and its head were called with."""
    tape = StudentPass(defer_head=defer_head)
    with patched(var, Recording(blocks, tape)):
        logits_BLV = (run or var)(label_B, x_BLCv_wo_first_l)
    tape.logits_BLV = None if defer_head else logits_BLV
    return tape


class Teacher(nn.Module):
    """AG-XAttn modules and E_a; the VAR is passed to each call and never becomes part of the state dict.

    `forward` is `observe` (the student's pass: VAR's own forward, its bits and random numbers) followed by `teach` and
    `logits`. To look at one student pass with several alias inputs, or to chunk the logits, call the three.
    """

    visible_LN: Tensor

    def __init__(self, geometry: TeacherGeometry) -> None:
        super().__init__()
        self.geometry = geometry
        with pristine_initializers():
            self.embed = AliasEmbedding(geometry)
            self.cross = nn.ModuleList(AliasGateCrossAttention(geometry) for _ in range(geometry.blocks))
        visible_LT = alias_visibility(geometry)
        null_L1 = torch.ones(len(visible_LT), 1, dtype=torch.bool)
        self.register_buffer("visible_LN", torch.cat((null_L1, visible_LT), dim=1), persistent=False)

    def observe(
        self,
        var: Any,
        label_B: Tensor,
        x_BLCv_wo_first_l: Tensor,
        run: Callable[..., Tensor] | None = None,
        defer_head: bool = False,
    ) -> StudentPass:
        """Runs the student and records what the teacher's pass shares with it.

        Args:
            var: the VAR, unwrapped.
            label_B: class labels (B,).
            x_BLCv_wo_first_l: teacher-forcing input (B, L - first_l, Cvae).
            run: what to call in VAR's place, for example DDP around it.
            defer_head: leave the logits to the caller, who has them from `var.get_logits(hidden, cond)` of the pass.
        """
        if tuple(var.patch_nums) != self.geometry.patch_nums or self.geometry.width != var.C or var.prog_si >= 0:
            raise ValueError(
                f"this teacher is for a VAR of width {self.geometry.width} and patch_nums {self.geometry.patch_nums} without "
                f"progressive training; got width {var.C}, {tuple(var.patch_nums)}, prog_si {var.prog_si}"
            )
        return record(var, label_B, x_BLCv_wo_first_l, self.geometry.blocks, run, defer_head)

    def teach(self, var: Any, tape: StudentPass, alias_K: Sequence[Tensor]) -> list[Tensor]:
        """Features of the teacher's pass through the last M blocks, M times (B,L,C).

        Args:
            alias_K: code vectors of the alias tokens, K-1 times (B,l_k,Ca).
        """
        aliases = self.embed(alias_K)
        x_BLC = tape.blocks[0].mid_BLC  # the first doubled block shares the student's self-attention
        features: list[Tensor] = []
        for block, cross, record in zip(var.blocks[-len(self.cross) :], self.cross, tape.blocks, strict=True):
            if features:
                x_BLC = detached_call(attention_half, block, x_BLC, record.six, tape.attn_bias, record.drop_attn)
            x_BLC = cross(x_BLC, aliases, self.visible_LN)
            x_BLC = detached_call(ffn_half, block, x_BLC, record.six, record.drop_ffn)
            features.append(x_BLC)
        return features

    def logits(self, var: Any, tape: StudentPass, feature_BlC: Tensor) -> Tensor:
        """Logits (B,l,V), fp32, of the last of `teach`'s features, or of some of its tokens."""
        assert tape.cond_BD is not None, "the tape holds no finished pass"
        return detached_logits(var, feature_BlC.float(), tape.cond_BD.detach())

    def forward(
        self,
        var: Any,
        label_B: Tensor,
        x_BLCv_wo_first_l: Tensor,
        alias_K: Sequence[Tensor],
        run: Callable[..., Tensor] | None = None,
    ) -> TeacherOutput:
        """Student and teacher on one batch; see `observe` and `teach` for the arguments."""
        tape = self.observe(var, label_B, x_BLCv_wo_first_l, run)
        features = self.teach(var, tape, alias_K)
        assert tape.logits_BLV is not None
        student = [record.out_BLC for record in tape.blocks]
        return TeacherOutput(tape.logits_BLV, self.logits(var, tape, features[-1]), student, features)
