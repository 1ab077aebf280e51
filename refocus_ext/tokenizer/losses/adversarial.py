"""The adversarial loss of stage 1: PatchGAN discriminator, hinge losses, adaptive weight, LeCAM.

Shapes: images (B,3,H,W) in [-1,1]; logits (B,1,h,w) of PatchGAN, one per overlapping patch, or (B,N) of DINO's heads.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch import distributed as tdist
from torch.func import functional_call
from torch.nn import functional as F

from refocus_ext.tokenizer.losses.diffaug import diffaug
from refocus_ext.tokenizer.losses.dino import DinoDiscriminator


def layers_for(image_size: int) -> int:
    """Strided layers of the discriminator: 1 at 16 px, 2 at 32, and 3 from 64 on, pix2pix's receptive field of 70 px.

    Raises:
        ValueError: the image is below 16 px, too small for one patch of logits.
    """
    if image_size < 16:
        raise ValueError(f"the discriminator needs images of at least 16 px, got {image_size}")
    return min(3, int(math.log2(image_size)) - 3)


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al., 2017) as VQGAN uses it, with GroupNorm in place of BatchNorm.

    With GroupNorm each image is processed independently and no forward pass changes a buffer (docs/method.md).

    Args:
        layers: strided layers, see `layers_for`.
        width: channels of the first layer, a multiple of 4; each further layer doubles them, up to eight times.
    """

    def __init__(self, layers: int = 3, width: int = 64) -> None:
        super().__init__()
        channels = [width * min(2**i, 8) for i in range(layers + 1)]
        stack: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(itertools.pairwise(channels), start=1):
            stack += [
                nn.Conv2d(before, after, 4, stride=2 if i < layers else 1, padding=1, bias=False),
                nn.GroupNorm(math.gcd(32, after // 4), after),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*stack, nn.Conv2d(channels[-1], 1, 4, padding=1))
        self.apply(_init_weights)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        return self.layers(image_B3HW)


def _init_weights(module: nn.Module) -> None:
    """pix2pix's: convolutions from N(0, 0.02)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# ------------------------------------------------------------------------------------------------ losses


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(E max(0, 1 - D(x)) + E max(0, 1 + D(x'))) / 2: 1 if the logits are all 0, 0 for a perfect discriminator."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-E D(x')."""
    return -fake.mean()


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    last_layer_weight: Tensor,
    floor: float = 0.0,
    ceiling: float = 1e4,
) -> Tensor:
    """VQGAN's weight of the adversarial loss (Esser et al., 2021, eq. 7): the ratio of the gradient norms of the two
    losses at the decoder's last layer, within floor .. ceiling. Without gradient; a scalar.

    Both graphs are kept. No gradient is accumulated, so DistributedDataParallel is not involved and each process uses
    its own batch. A vanishing adversarial gradient gives the ceiling, a vanishing reconstruction gradient the floor.
    """
    # lambda = |grad_L rec| / |grad_L adv|
    (rec,) = torch.autograd.grad(reconstruction_loss, last_layer_weight, retain_graph=True)
    (adv,) = torch.autograd.grad(adversarial_loss, last_layer_weight, retain_graph=True)
    norm = adv.float().norm().clamp_min(torch.finfo(torch.float32).tiny)
    ratio = (rec.float().norm() / norm).clamp(floor, ceiling)
    # with scaled fp16 losses the gradients may overflow; the step is then skipped by its own gradients
    return ratio.nan_to_num(floor).detach()


class LeCam(nn.Module):
    """LeCAM regularisation (Tseng et al., 2021): keeps each side's logits near the running mean of the other side's.

    The means are over all processes and are part of the state dict. They start as plain means of the logits so far,
    so that the first steps are not biased to 0, and become moving averages with the given decay.
    """

    means: Tensor  # of the logits of real and of fake images
    updates: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Updates the means with the logits of a step."""
        seen = torch.stack([real.mean(), fake.mean()]).to(self.means)
        if tdist.is_available() and tdist.is_initialized():
            tdist.all_reduce(seen)
            seen /= tdist.get_world_size()
        seen = torch.where(
            seen.isfinite(), seen, self.means
        )  # a step that overflows must not make the means NaN for good
        self.updates += 1
        self.means.lerp_(seen, (1 / self.updates).clamp_min(1 - self.decay).to(seen))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """E max(0, D(x) - mean_fake)^2 + E max(0, mean_real - D(x'))^2."""
        mean_real, mean_fake = self.means.clone()
        return F.relu(real - mean_fake).square().mean() + F.relu(mean_real - fake).square().mean()


# ------------------------------------------------------------------------------------------------ both sides


class Adversary(nn.Module):
    """Discriminator and LeCAM state. The optimizer is the caller's.

    `forward` is the discriminator's step, so that DistributedDataParallel synchronizes only that; call
    `generator_loss` on the adversary itself.

    Args:
        image_size: pixels, at least 16; chooses the depth.
        lecam: weight of LeCAM in the discriminator's loss; its state is kept, and in the state dict, even if 0.
        width: channels of the discriminator's first layer.
        decay: of LeCAM's moving averages.
        backbone: frozen features of `dino.DinoDiscriminator`; None makes a `PatchDiscriminator`.
        augments: DiffAug on every image that the discriminator sees.
        bcr: weight of balanced consistency regularization (Zhao et al., 2021, bCR) in the discriminator's loss, which costs a
            second pass: the mean squared difference of its logits of an image and of the same image changed by DiffAug.

    Raises:
        ValueError: images below 16 px.
    """

    def __init__(
        self,
        image_size: int,
        lecam: float = 0.0,
        width: int = 64,
        decay: float = 0.999,
        backbone: nn.Module | None = None,
        augments: bool = False,
        bcr: float = 0.0,
    ) -> None:
        super().__init__()
        self.discriminator: PatchDiscriminator | DinoDiscriminator
        if backbone is None:
            self.discriminator = PatchDiscriminator(layers_for(image_size), width)
        else:
            self.discriminator = DinoDiscriminator(backbone)
        self.augments, self.bcr = augments, bcr
        self.lecam_weight = lecam
        self.lecam = LeCam(decay)

    def begin_step(self) -> None:
        """Before a step of the discriminator: what a step, and not a pass, changes."""
        if isinstance(self.discriminator, DinoDiscriminator):
            self.discriminator.begin_step()

    def _seen(self, image_B3HW: Tensor) -> Tensor:
        return diffaug(image_B3HW) if self.augments else image_B3HW

    def generator_loss(self, fake_B3HW: Tensor) -> Tensor:
        """Hinge loss of the generator; its gradient reaches the images but not the discriminator."""
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return hinge_generator_loss(functional_call(self.discriminator, frozen, (self._seen(fake_B3HW),)).float())

    def discriminator_loss(self, real_B3HW: Tensor, fake_B3HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Hinge loss, plus LeCAM and bCR if their weights are not 0; its gradient does not reach the images.

        Returns:
            (loss, detached terms): "critic" the hinge loss, "logits_real" and "logits_fake" their means, and "lecam" and
            "bcr" unweighted if they are used.
        """
        both = torch.cat([real_B3HW, fake_B3HW.to(real_B3HW.dtype)]).detach()  # one forward: each image is independent
        real, fake = self.discriminator(self._seen(both)).float().chunk(2)
        loss = hinge_discriminator_loss(real, fake)
        terms = {"critic": loss.detach(), "logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}
        if self.lecam_weight:
            if self.training:
                self.lecam.update(real, fake)
            penalty = self.lecam(real, fake)
            loss, terms["lecam"] = loss + self.lecam_weight * penalty, penalty.detach()
        if self.bcr:
            again = self.discriminator(diffaug(both)).float()
            difference = F.mse_loss(again, torch.cat((real, fake)))
            loss, terms["bcr"] = loss + self.bcr * difference, difference.detach()
        return loss, terms

    def forward(self, real_B3HW: Tensor, fake_B3HW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.discriminator_loss(real_B3HW, fake_B3HW)
