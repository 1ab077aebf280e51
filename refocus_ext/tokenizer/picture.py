"""picture.png of a stage-1 run: original | each focus state | its reconstruction from the prefix of its scales."""

from __future__ import annotations

import torch
from torch import Tensor

from patches.protocols import FocusedVQVAE, device_of
from refocus_ext.engine.run_folder import RunFolder
from refocus_ext.images.crops import Crops
from refocus_ext.images.order import spread
from refocus_ext.images.picture import as_array, grid, save_png
from refocus_ext.optics.pyramid import FocusPyramid
from refocus_ext.tokenizer.alias.tokenizer import AliasTokenizer
from refocus_ext.tokenizer.prefixes import at_full_size, prefixes, psnr

ROWS = 8


@torch.no_grad()
def draw_prefixes(
    run: RunFolder, vae: FocusedVQVAE, data: Crops, step: int, steps: int, quantized: bool, rows_at_most: int = ROWS
) -> None:
    """Draws validation images evenly spread over the data set.

    Args:
        vae: focus-patched; put into eval mode for the drawing.
        quantized: False draws the unquantized D(T_k), while there is no codebook yet.
    """
    training, device = vae.training, device_of(vae)
    vae.eval()
    rows, captions, names = [], [], []
    for index in spread(range(len(data)), min(ROWS, rows_at_most)):
        sample = data.told(index)
        row, caption = _row(vae, sample.image.unsqueeze(0).to(device), quantized)
        rows.append(row)
        captions.append(caption)
        names.append(data.images.classes[sample.label])
    vae.train(training)
    picture = grid(rows, _headers(vae, quantized), captions, names, f"step {step} of {steps}")
    save_png(run.path / "picture.png", picture)
    run.log_image(step, "prefixes", as_array(picture))


def _row(vae: FocusedVQVAE, x: Tensor, quantized: bool) -> tuple[list[Tensor], list[str]]:
    pyramid = vae.focus_pyramid
    views = pyramid.structure_views(x)
    decoded = prefixes(vae, x) if quantized else [at_full_size(vae, vae.decode(vae.encode_view(v))) for v in views]
    row, caption = [x[0]], [""]
    for k, image in enumerate(decoded):
        target = pyramid.focused(x, k)
        row += [target[0], image[0]]
        caption += ["", f"{float(psnr(image, target)):.1f} dB"]
    return row, caption


def _headers(vae: FocusedVQVAE, quantized: bool) -> list[str]:
    pyramid, patch_nums = vae.focus_pyramid, vae.quantize.v_patch_nums
    headers = ["original"]
    for k, scale in enumerate(pyramid.last_scale_of_state(patch_nums)):
        last = len(patch_nums) - 1 if scale is None else scale
        tokens = sum(pn * pn for pn in patch_nums[: last + 1])
        blur = f"rho {pyramid.radii[k]:g} px" if pyramid.blurs and pyramid.radii[k] else "sharp"
        source = f"from {tokens} token{'s' * (tokens > 1)}\nPSNR to F{k + 1}" if quantized else "unquantized\n"
        headers += [f"F{k + 1}\n{blur}", source]
    return headers


@torch.no_grad()
def draw_alias(
    run: RunFolder, alias: AliasTokenizer, pyramid: FocusPyramid, data: Crops, step: int, steps: int
) -> None:
    """alias.png: for each alias state, A_k beside its reconstruction from tokens; grey is zero, contrast is set by A_k's RMS."""
    device = next(alias.parameters()).device
    rows, names = [], []
    for index in spread(range(len(data)), ROWS):
        sample = data.told(index)
        views = [pyramid.alias(sample.image.unsqueeze(0).to(device), k) for k in range(pyramid.states - 1)]
        decoded = alias.reconstruct(alias.tokens(views))
        row = [sample.image]
        for view, image in zip(views, decoded, strict=True):
            scale = 1 / (3 * view.square().mean().sqrt().clamp_min(1e-3))
            row += [view[0] * scale, image[0] * scale]
        rows.append(row)
        names.append(data.images.classes[sample.label])
    headers = ["original"]
    for k, grid_side in enumerate(alias.geometry.grids, start=1):
        headers += [f"A{k}\n1 pixel in {pyramid.factors[k - 1]}", f"A{k} from\n{grid_side * grid_side} tokens"]
    picture = grid(rows, headers, None, names, f"step {step} of {steps}")
    save_png(run.path / "alias.png", picture)
    run.log_image(step, "alias", as_array(picture))
