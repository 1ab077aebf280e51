"""Options of `tokens`. Imports no torch, so that help is instant."""

from __future__ import annotations

from refocus_ext.optics.names import BLURS
from refocus_ext.options import shared
from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import non_negative, positive

WHAT = Heading("what to tokenize")
VIEWS = Heading("views of an image")
SPEED = Heading("speed")
RUN = Heading("run")


class TokensOptions(Options):
    """
    Writes the structure and alias tokens of the training images once, so that distill need not run the encoders again:
    fixed random crops, mirrored too with --hflip, two bytes a token. Run the same command again to resume an
    interrupted cache, or to check a finished one and remake what is damaged.
    """

    tokenizer: str = WHAT(
        "runs/tokenizer",
        "run folder of a finished tokenizer, or a file of VQVAE weights such as vae_ch160v4096z32.pth (needs --data, "
        "and --val-share where the data has no val/)",
        metavar="RUN|FILE",
    )
    patch_nums: tuple[int, ...] | None = shared.patch_nums(WHAT)
    blur: str = shared.blur(WHAT, BLURS)
    focus_states: int | None = shared.focus_states(WHAT)
    rho_max: float | None = shared.rho_max(WHAT)
    data: str = WHAT(
        "",
        "ImageFolder whose train/CLASS/*.JPEG are tokenized, or any other data that `distill` takes; without it the data of the "
        "tokenizer's run",
        metavar="DIR",
    )
    val_share: float | None = shared.val_share(WHAT)
    unfinished: bool = shared.unfinished(WHAT)
    small_images: str = shared.small_images_as_run(WHAT)

    crops: int | None = VIEWS(
        None,
        "random crops of an image, which training uses in turn; without it as many as `distill` uses",
        positive(int),
    )
    hflip: bool = VIEWS(False, "also tokenize the mirror image of each crop: twice as many views")
    crop_scale: float = shared.crop_scale(VIEWS)
    seed: int = VIEWS(0, "seed of the crops")

    precision: str = SPEED(
        "auto",
        "arithmetic of the encoders (the codebook search stays fp32); auto is tf32 on CUDA, as VAR encodes, fp32 on a CPU",
        choices=("auto", "fp32", "tf32", "bf16"),
    )
    batch_size: int | None = SPEED(
        None, "views encoded at once on each process; without it 128 on CUDA and 16 on a CPU", positive(int)
    )
    workers: int | None = SPEED(
        None, "loader processes; without it as many as the tokenizer's run had", non_negative(int)
    )
    device: str = shared.device(SPEED)

    out: str = RUN("", "folder of the cache; without it RUN/tokens, or FILE.tokens", metavar="DIR")
    dry_run: bool = shared.dry_run(RUN, "print what the cache will hold and how large it will be, and exit")

    def several_processes(self) -> bool:
        return True
