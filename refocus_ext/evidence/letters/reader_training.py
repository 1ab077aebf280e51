"""Trains a reader on fresh letters in all fonts, somewhat blurred, noisy and recoloured, as a person can read them too."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from refocus_ext.engine.progress import Progress
from refocus_ext.evidence.letters.reader import Reader
from refocus_ext.images.crops import Crops, Sample
from refocus_ext.images.letters.fonts import SEEN, UNSEEN, matplotlib_fonts
from refocus_ext.images.order import SampleKey
from refocus_ext.images.sources.letters import Letters
from refocus_ext.seeds import Stream, stream_seed

EPOCHS = {"words": 8, "long-words": 10}  # 4 for letters
BATCH, RATE = 64, 1.5e-3
SEED = 7  # no run's pictures: runs have small seeds of their own, and validation draws from another stream
BLUR = 1.0  # largest sigma, pixels at 64
NOISE = 0.1  # largest standard deviation, of images in [-1,1]


def train_reader(level: str, device: torch.device, epochs: int | None = None, per_epoch: int | None = None) -> Reader:
    """A reader of a level, trained from scratch: always the same one on the same machine.

    Args:
        epochs: by default those of EPOCHS.
        per_epoch: pictures of an epoch; by default all of them.
    """
    epochs = epochs or EPOCHS.get(level, 4)
    torch.manual_seed(stream_seed(SEED, Stream.WEIGHTS))
    reader = Reader(level).to(device).train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=1e-2)
    source = Letters(level, "train", matplotlib_fonts((*SEEN, *UNSEEN)))
    count = min(per_epoch or len(source), len(source))
    steps = epochs * (count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    progress, done = Progress(0, steps, BATCH), 0
    crops = Crops(source, reader.side, seed=SEED)
    generator = torch.Generator().manual_seed(stream_seed(SEED, Stream.STEP))
    for epoch in range(epochs):
        order = torch.randperm(len(source), generator=generator)[:count].tolist()
        keys = [SampleKey(epoch, index) for index in order]
        loader: DataLoader[Sample] = DataLoader(crops, BATCH, sampler=keys, num_workers=2, drop_last=True)
        for batch in loader:
            image, label = spoil(batch.image, generator).to(device), batch.label.to(device)
            loss = F.cross_entropy(reader(image).logit_BV, label)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            progress.update(done, {"loss": loss.item()})
    progress.close()
    # what is kept is what is used: weights in half precision
    reader.load_state_dict({name: tensor.half().float() for name, tensor in reader.state_dict().items()})
    return reader.eval().requires_grad_(False)


def spoil(image_B3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Images as a generator could make them: recoloured by a random mix of channels, blurred, noisy. Random for each image."""
    B = len(image_B3HW)
    mix = torch.eye(3) + 0.2 * torch.randn(B, 3, 3, generator=generator)
    image = torch.einsum("bij,bjhw->bihw", mix, image_B3HW)
    sigma = BLUR * torch.rand(B, generator=generator) * image.shape[-1] / 64
    image = torch.cat([_blurred(one[None], float(s)) for one, s in zip(image, sigma, strict=True)])
    level = NOISE * torch.rand(B, 1, 1, 1, generator=generator)
    return (image + level * torch.randn(image.shape, generator=generator)).clamp(-1, 1)


def _blurred(image_B3HW: Tensor, sigma: float) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur

    return gaussian_blur(image_B3HW, 2 * round(3 * sigma) + 1, max(sigma, 1e-3)) if sigma > 0.2 else image_B3HW
