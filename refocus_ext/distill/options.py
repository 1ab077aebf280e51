"""Options and presets of stage 2. Standard library only, so that help is instant."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from refocus_ext.options import shared as common
from refocus_ext.options.parser import non_negative, option, positive

DISTILL_DESCRIPTION = """
Trains the student of stage 2, a vanilla VAR on focus tokens, together with its teacher: the same weights plus
alias-gate cross-attention, which looks at the alias tokens and hands on what it learns from them. Needs a finished
`bash run.sh tokenizer`. Typed again, the same command continues an interrupted run.
"""


@dataclasses.dataclass(frozen=True)
class DistillOptions:
    """Stage 2: the student, a vanilla VAR on focus tokens, and its alias-gate teacher."""

    # fmt: off
    preset: str = option(
        "", "where all other defaults come from; that of the tokenizer, but paper with --data",
        choices=("demo", "vanilla", "paper", "paper-512"), group="what to train on",
    )
    tokenizer: str = option("runs/tokenizer", "run folder of a finished `tokenizer`", metavar="RUN", group="what to train on", identity=False)
    data: str = option(
        "", "ImageFolder with train/CLASS/*.JPEG and val/CLASS/*.JPEG; without it what the tokenizer was trained on",
        metavar="DIR", group="what to train on",
    )
    small_images: str = common.small_images("what to train on")
    crops: int = option(
        None, "fixed random crops of each image, met in turn; 0 draws a new one every epoch (needs --cache off)", kind=non_negative(int),
        group="what to train on",
    )
    hflip: bool = option(False, "each crop mirrored as well", group="what to train on")
    crop_scale: float = common.crop_scale("what to train on")
    cache: str = option(
        "", "folder of the token cache, made when it is missing; empty is RUN/tokens of the tokenizer, off tokenizes while training",
        metavar="DIR|off", group="what to train on", identity=False,
    )
    init: str = option(
        "", "VAR weights to start from, as upstream publishes them (var_d20.pth fits preset vanilla)", metavar="FILE", group="what to train on",
    )

    depth: int = option(None, "D, blocks of the VAR; its width is 64 D", kind=positive(int), group="student (VAR)")
    num_classes: int = option(None, "classes of the class embedding, 0: as many as the data has; upstream's demos want 1000", kind=non_negative(int), group="student (VAR)")
    shared_aln: str = option("auto", "one AdaLN for all blocks; auto is on for d36, as upstream's", choices=("auto", "on", "off"), group="student (VAR)")
    attention: str = option(
        "dense", "of the training pass: upstream's dense mask, five block-causal groups, or one call per scale (equal to 1e-6)",
        choices=("dense", "grouped", "per-scale"), group="student (VAR)",
    )

    teacher: str = option(
        "on", "on: the student's own weights and alias-gate cross-attention; separate: a second full VAR; off: VAR's own training",
        choices=("on", "off", "separate"), group="teacher",
    )
    teacher_blocks: int = option(2, "M, last blocks that run twice", kind=positive(int), group="teacher")
    mask: str = option("causal", "alias tokens a scale sees: of the states before its own, or (privileged) of its own too", choices=("causal", "privileged"), group="teacher")
    alias_scales: int = option(0, "only the last so many scales see alias tokens; 0: all that the mask lets", kind=non_negative(int), group="teacher")
    lambda_feat: float = option(1.0, "weight of feature distillation", kind=non_negative(float), group="teacher")
    lambda_logit: float = option(0.5, "weight of logit distillation (KL)", kind=non_negative(float), group="teacher")
    teacher_lr: float = option(
        0.1, "learning rate of the alias gates, a factor on the student's; a fast teacher leads the student astray early on",
        kind=positive(float), group="teacher",
    )

    steps: int = option(None, "optimizer steps in all", kind=positive(int), group="optimization")
    batch_size: int = common.batch_size("optimization")
    accumulate: int = common.accumulate("optimization")
    lr: float = option(None, "peak learning rate (VAR: 1e-4 at a batch of 256)", kind=positive(float), group="optimization")
    seed: int = option(0, "seed of weights, data order, crops and dropped labels", kind=int, group="optimization")

    precision: str = option(
        "auto", "autocast of the networks (losses and token lookups stay fp32); auto is bf16 on CUDA, fp32 on a CPU",
        choices=("auto", "fp32", "bf16", "fp16"), group="speed",
    )
    tokens_precision: str = option(
        "auto", "of the encoders that make the tokens; auto is tf32 on CUDA, as VAR's own training, fp32 on a CPU",
        choices=("auto", "fp32", "tf32", "bf16"), group="speed",
    )
    parallel: str = option("ddp", "several processes: copies of the model, or (fsdp, FSDP2) shards of it for d30 and d36", choices=("ddp", "fsdp"), group="speed", identity=False)
    grad_checkpoint: bool = option(False, "compute activations again in the backward pass", group="speed", identity=False)
    compile: bool = option(False, "torch.compile the blocks that run once", group="speed", identity=False)
    workers: int = common.workers("speed")
    device: str = common.device("speed")

    out: str = option("", "run folder; empty is runs/distill-dD", metavar="DIR", group="run", identity=False)
    resume: str = common.resume("run")
    save_every: int = option(None, "steps between checkpoints, 0: at the end and when interrupted", kind=non_negative(int), group="run", identity=False)
    keep: int = option(None, "checkpoints that are kept; with 1 a damaged one has none before it", kind=positive(int), group="run", identity=False)
    picture_every: int = option(None, "steps between validations, with samples drawn", kind=positive(int), group="run", identity=False)
    log_every: int = option(None, "steps between records of every scale's loss and accuracy", kind=positive(int), group="run", identity=False)
    val_images: int = option(None, "at most this many validation images, evenly spread", kind=positive(int), group="run", identity=False)
    samples: int = option(None, "images drawn at every validation, 0 none", kind=non_negative(int), group="run", identity=False)
    dry_run: bool = common.dry_run("run")
    # fmt: on


_PAPER: dict[str, Any] = dict(
    depth=16, num_classes=1000, crops=4, steps=400_000, batch_size=256, lr=1e-4, workers=8, save_every=2500, keep=2,
    picture_every=5000, log_every=100, val_images=1024, samples=16,
)  # fmt: skip
DISTILL_PRESETS: dict[str, dict[str, Any]] = {
    "demo": dict(
        depth=8, num_classes=0, crops=4, steps=80, batch_size=8, lr=6e-4, workers=0, save_every=0, keep=1,
        picture_every=40, log_every=10, val_images=64, samples=16,
    ),
    "vanilla": _PAPER,
    "paper": _PAPER,
    "paper-512": _PAPER | dict(depth=36),
}  # fmt: skip


def choose_distill_preset(typed: dict[str, Any]) -> str:
    """That of the tokenizer's run; where there is none yet, or --data is given, as for a tokenizer (DESIGN 4)."""
    file = Path(typed.get("tokenizer") or "runs/tokenizer") / "config.json"
    try:
        theirs = str(json.loads(file.read_text())["options"]["preset"])
    except (OSError, ValueError, KeyError, TypeError):
        theirs = ""
    if theirs in DISTILL_PRESETS and not (theirs == "demo" and typed.get("data")):
        return theirs
    return "paper" if typed.get("data") else "demo"
