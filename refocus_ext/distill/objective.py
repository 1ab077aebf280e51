"""What one stage-2 step computes: the student's pass, the teacher's, and eq. 13 over both.

Shapes: B batch, L structure tokens, T alias tokens, C width, V codes, S token scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from patches.protocols import VAR, VQVAE
from patches.teacher_block import StudentPass
from refocus_ext.distill.losses import Head, Terms, distillation_loss, feature_distance
from refocus_ext.distill.recipe import DistillWeights
from refocus_ext.distill.teacher.interface import AliasTeacher, TeacherPass
from refocus_ext.distill.teacher.shared_weights import record
from refocus_ext.tokenizer.alias.tokenizer import AliasTokenizer
from refocus_ext.tokens.tokenize import split_maps


class TokenEmbedding:
    """Turns tokens into network inputs with the frozen tokenizers, in fp32 and without gradient."""

    def __init__(self, vae: VQVAE, alias: AliasTokenizer | None) -> None:
        self.vae, self.alias_tokenizer = vae, alias
        self.sides = vae.quantize.v_patch_nums

    @torch.no_grad()
    def structure(self, idx_BL: Tensor) -> Tensor:
        """Teacher-forcing input (B, L - first_l, Cvae) of structure tokens (B,L)."""
        return self.vae.quantize.idxBl_to_var_input(list(split_maps(idx_BL, self.sides)))

    @torch.no_grad()
    def alias(self, alias_BT: Tensor) -> list[Tensor]:
        """Code vectors of alias tokens (B,T), K-1 times (B,l_k,Ca)."""
        assert self.alias_tokenizer is not None
        maps = split_maps(alias_BT, self.alias_tokenizer.geometry.grids)
        return [self.alias_tokenizer.codebook_vectors(idx_Bl) for idx_Bl in maps]


class DistillObjective(nn.Module):
    """Eq. 13 of a batch of tokens: `forward(label_B, x_BLC, idx_BL, alias_K)` -> (loss, detached terms).

    One module around both networks, so that DistributedDataParallel sees one forward per step. The student's loss
    trains only the VAR, and the teacher's own cross-entropy only the teacher; with both weights 0 the VAR's gradient is
    bit-identical to that of `teacher=None`.

    Args:
        var: the student, a VAR.
        teacher: an `AliasTeacher`, or None for VAR's own training.
    """

    def __init__(self, var: VAR, teacher: AliasTeacher | None, weights: DistillWeights) -> None:
        super().__init__()
        self.var: VAR = var
        self.teacher, self.weights = teacher, weights

    def forward(
        self, label_B: Tensor, x_BLCv_wo_first_l: Tensor, idx_BL: Tensor, alias_K: Sequence[Tensor]
    ) -> tuple[Tensor, Terms]:
        """
        Args:
            label_B: class labels.
            x_BLCv_wo_first_l: teacher-forcing input (B, L - first_l, Cvae).
            idx_BL: structure tokens, the targets.
            alias_K: code vectors of the alias tokens, K-1 times (B,l_k,Ca); read only by a teacher.
        """
        tape, taught = self.passes(label_B, x_BLCv_wo_first_l, alias_K)
        assert tape.hidden_BLC is not None
        loss, terms = distillation_loss(
            tape.hidden_BLC,
            taught.features[-1] if taught else None,
            idx_BL,
            self.var.begin_ends,
            student_head=self.student_head(tape),
            teacher_head=taught.head if taught else None,
            kl_weight=self.weights.logit,
            temperature=self.weights.temperature,
            teacher_learns=self.teacher is not None and self.teacher.learns,
        )
        if taught:
            distance, feature_terms = feature_distance(
                [block.out_BLC for block in tape.blocks], taught.features, distance=self.weights.distance
            )
            terms |= feature_terms
            if self.weights.feat:  # skipped at weight 0, because 0 * an overflowing gradient is not 0
                loss = loss + self.weights.feat * distance
        return loss, terms

    def student_head(self, tape: StudentPass) -> Head:
        """Its logits are fp32."""
        cond_BD = tape.cond_BD
        assert cond_BD is not None, "the tape has no finished pass"
        return lambda h_bLC, images: self.var.get_logits(h_bLC, cond_BD[images])

    def passes(
        self, label_B: Tensor, x_BLCv_wo_first_l: Tensor, alias_K: Sequence[Tensor]
    ) -> tuple[StudentPass, TeacherPass | None]:
        """Both passes up to their heads."""
        if self.teacher is None:
            return record(self.var, label_B, x_BLCv_wo_first_l, blocks=0, defer_head=True), None
        return self.teacher.passes(self.var, label_B, x_BLCv_wo_first_l, alias_K)
