"""The codebooks of a stage-1 run: filled from data, use counted, dead codes revived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patches.protocols import FocusedQuantizer, FocusedVQVAE
from refocus_ext.engine.devices import uncompiled
from refocus_ext.engine.distributed import World
from refocus_ext.engine.training import RunPlan
from refocus_ext.images.crops import Crops
from refocus_ext.images.order import StepBatches, chunks
from refocus_ext.optics.pyramid import alias_views
from refocus_ext.seeds import Stream, stream_seed
from refocus_ext.tokenizer.alias.tokenizer import AliasOutput, AliasTokenizer
from refocus_ext.tokenizer.averages import Averages
from refocus_ext.tokenizer.losses.objective import StructureOutput
from refocus_ext.tokenizer.recipe import TokenizerRecipe
from refocus_ext.vector_quantization import code_hits, full_precision_matmul, kmeans, nearest_row


@torch.no_grad()
def initialise_codebook(quantizer: FocusedQuantizer, T_K: Sequence[Tensor], generator: torch.Generator) -> None:
    """Fills the codebook from focus targets: scale by scale, k-means on the residual left by the codes so far.

    Each scale gets codes in proportion to the square root of its tokens, so that the few tokens of the coarse scales,
    on which every later scale builds, get enough codes. phi is assumed to be the identity, as after `init_vae_weights`.

    Args:
        quantizer: a focus-patched VectorQuantizer2.
        T_K: focus targets of a sample of images, K times (N,C,n,n).
    """
    sizes, latent = quantizer.v_patch_nums, T_K[0].shape[-1]
    states = quantizer.focus_pyramid.states_of(sizes)
    weights = torch.tensor([float(pn) for pn in sizes])  # sqrt(pn * pn)
    ends = (quantizer.vocab_size * weights.cumsum(0) / weights.sum()).round().long().tolist()
    rest, state, filled = T_K[states[0]].clone(), states[0], 0
    table = quantizer.embedding.weight.data
    for pn, new_state, end in zip(sizes, states, ends, strict=True):
        rest, state = rest + (T_K[new_state] - T_K[state]), new_state
        pooled = rest if pn == latent else F.interpolate(rest, size=(pn, pn), mode="area")
        points = pooled.permute(0, 2, 3, 1).reshape(-1, rest.shape[1])
        if end > filled:
            table[filled:end] = kmeans(points, end - filled, generator)
            filled = end
        codes = table[:filled][nearest_row(points, table[:filled])].view(len(rest), pn, pn, -1)
        chosen = codes.permute(0, 3, 1, 2)
        rest = rest - (chosen if pn == latent else F.interpolate(chosen, size=(latent, latent), mode="bicubic"))


class Codebook(Protocol):
    """A quantizer whose codes can be revived."""

    @property
    def embedding(self) -> nn.Embedding: ...
    @property
    def vocab_size(self) -> int: ...


class CodeRevival:
    """Counts which codes are used; those unused since the last revival become residuals of the current batch.

    Args:
        quantizer: the codebook to change in place.
        margin: a code with at most this many hits since the last revival is dead.
    """

    def __init__(self, quantizer: Codebook, margin: int = 0) -> None:
        self.quantizer, self.margin = quantizer, margin
        table = quantizer.embedding.weight
        self.hits_V = torch.zeros(quantizer.vocab_size, dtype=torch.long, device=table.device)

    def count(self, idx_S: Sequence[Tensor]) -> None:
        for idx in idx_S:
            self.hits_V += code_hits(idx, len(self.hits_V))

    @torch.no_grad()
    def revive(
        self,
        residual_S: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        world: World | None = None,
    ) -> Tensor:
        """Replaces the dead codes, clears their optimizer moments and resets the counts; returns their indices.

        Args:
            generator: must be in the same state on every process of `world`; rank 0 supplies the new vectors.
        """
        if world is not None:
            self.hits_V = world.sum(self.hits_V)
        dead = (self.hits_V <= self.margin).nonzero().flatten()
        self.hits_V.zero_()
        pool = torch.cat(list(residual_S))
        if len(dead) > len(pool) // 2:  # a batch supplies only so many distinct vectors
            dead = dead[torch.randperm(len(dead), generator=generator)[: len(pool) // 2].to(dead.device)]
        weight = self.quantizer.embedding.weight
        picks = torch.randperm(len(pool), generator=generator)[: len(dead)].to(pool.device)
        lent = pool[picks].to(weight.dtype)
        lent = torch.where(lent.isfinite(), lent, weight.data[dead])  # those of a step that was skipped may not be
        weight.data[dead] = lent if world is None else world.broadcast(lent.contiguous())
        for moment in optimizer.state.get(weight, {}).values():
            if isinstance(moment, Tensor) and moment.shape == weight.shape:
                moment[dead] = 0
        return dead


class Codebooks:
    """Both codebooks of a run: each is initialized from training crops at its first step, and dead codes are revived.

    Args:
        vae: focus-patched, in train mode.
        alias: the alias tokenizer, or None.
        averages: averaged weights, in which codes are revived as well.
        data: the training crops.
    """

    def __init__(
        self,
        plan: RunPlan,
        recipe: TokenizerRecipe,
        world: World,
        vae: FocusedVQVAE,
        alias: AliasTokenizer | None,
        averages: Averages,
        data: Crops,
    ) -> None:
        self.plan, self.recipe, self.world = plan, recipe, world
        self.vae, self.alias, self.averages, self.data = vae, alias, averages, data
        self.shared = alias is not None and alias.geometry.codebook == "shared"
        self.revival = CodeRevival(vae.quantize)
        self.alias_revival = CodeRevival(alias) if alias is not None and not self.shared else None

    @property
    def alias_start(self) -> int:
        """The step from which the alias tokenizer trains: a shared codebook must be initialized first."""
        return self.recipe.warm_autoencoder if self.shared else 0

    # ------------------------------------------------------------------ from data

    @torch.no_grad()
    def initialise(self, step: int) -> None:
        """Initializes a codebook from training crops if `step` is its first step; the result is equal on every process."""
        if step in (self.recipe.warm_autoencoder, self.alias_start):
            with full_precision_matmul(), uncompiled():  # nearest codes; one use is not worth a compilation
                self._initialise(step)

    def _initialise(self, step: int) -> None:
        generator = torch.Generator().manual_seed(stream_seed(self.plan.seed, Stream.CODEBOOK))
        if step == self.recipe.warm_autoencoder and self.recipe.codebook_from_data:
            quantizer = self.vae.quantize
            crops = self._sample_crops(self.recipe.codebook_images)
            initialise_codebook(quantizer, self._targets(crops), generator)
            self.world.broadcast(quantizer.embedding.weight.data)
        if step == self.alias_start and self.alias is not None:
            views = [alias_views(self.vae.focus_pyramid, x) for x in self._sample_crops(512)]
            self.alias.initialise([torch.cat(parts) for parts in zip(*views, strict=True)], generator)
            for tensor in self.alias.state_dict().values():
                self.world.broadcast(tensor)

    def _sample_crops(self, count: int) -> Iterator[Tensor]:
        """Batches of a fixed set of training crops, no larger than a training micro-batch."""
        seed = stream_seed(self.plan.seed, Stream.CODEBOOK_SAMPLE)
        (keys,) = StepBatches(len(self.data), count, start=0, stop=1, seed=seed)
        for chunk in chunks(keys, self.plan.images_at_once(self.world.size)):
            yield torch.stack([self.data[key].image for key in chunk]).to(self.world.device)

    def _targets(self, crops: Iterable[Tensor]) -> list[Tensor]:
        """Focus targets of the crops, K times (N,C,n,n)."""
        self.vae.eval()
        encoded = [self.vae.encode_targets(x) for x in crops]
        self.vae.train()
        states = self.vae.focus_pyramid.states
        lists = [[T] * states if isinstance(T, Tensor) else T for T in encoded]
        return [torch.cat(parts) for parts in zip(*lists, strict=True)]

    # ------------------------------------------------------------------ revival

    def update(
        self,
        step: int,
        outputs: Sequence[StructureOutput],
        aliases: Sequence[AliasOutput],
        optimizer: torch.optim.Optimizer,
    ) -> dict[str, float]:
        """Counts a step's tokens; every `revive` steps replaces unused codes and returns how many it replaced."""
        if not self.recipe.revive:
            return {}
        counts: dict[str, float] = {}
        idx, pool = [i for out in outputs for i in out.idx_S], [r for out in outputs for r in out.residual_S]
        if idx and self.shared and self.alias is not None:  # a code that alias tokens use is in use
            idx += [i * self.alias.spacing for out in aliases for i in out.idx_K]
            pool += [p for out in aliases for p in out.points_K]
        if idx:
            counts |= self._revive(step, "revived", self.revival, idx, pool, self.averages.vae.quantize, optimizer)
        if aliases and self.alias_revival:
            idx, pool = [i for out in aliases for i in out.idx_K], [p for out in aliases for p in out.points_K]
            counts |= self._revive(step, "alias/revived", self.alias_revival, idx, pool, self.averages.alias, optimizer)
        return counts

    def _revive(
        self,
        step: int,
        name: str,
        revival: CodeRevival,
        idx: list[Tensor],
        pool: list[Tensor],
        averaged: Codebook,
        optimizer: torch.optim.Optimizer,
    ) -> dict[str, float]:
        """Updates one codebook, and its averaged copy."""
        revival.count(idx)
        # none in the last fifth: a code revived there would not be trained
        if (step + 1) % self.recipe.revive or step + 1 > 0.8 * self.plan.steps_at(step):
            return {}
        generator = torch.Generator().manual_seed(stream_seed(self.plan.seed, Stream.REVIVAL, step))
        revived = revival.revive(pool, optimizer, generator, self.world)
        averaged.embedding.weight.data[revived] = revival.quantizer.embedding.weight.data[revived]
        return {name: float(len(revived))}

    def state_dict(self) -> dict[str, Any]:
        """Entries for a checkpoint: hits of all processes, which must all call it."""
        state = {"revival": {"hits_V": self.world.sum(self.revival.hits_V.clone())}}
        if self.alias_revival:
            state["alias_revival"] = {"hits_V": self.world.sum(self.alias_revival.hits_V.clone())}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads its entries of a checkpoint; the hits count once, on rank 0."""
        for name, revival in (("revival", self.revival), ("alias_revival", self.alias_revival)):
            if revival:
                revival.hits_V.copy_(state[name]["hits_V"] * int(self.world.main))
