"""Options of `distill`. Imports no torch, so that help is instant."""

from __future__ import annotations

from collections.abc import Mapping

from refocus_ext.distill.teacher.kinds import EMA, FROZEN, KINDS, OFF
from refocus_ext.optics.names import BLURS
from refocus_ext.options import shared
from refocus_ext.options.fields import Heading, Options
from refocus_ext.options.kinds import non_negative, positive, share
from refocus_ext.options.presets import DEEPER, Stage, default_tokenizer_run, preset_of_tokenizer
from refocus_ext.tokenizer.options import TokenizerOptions

DATA = Heading("what to train on")
STUDENT = Heading("student (VAR)")
TEACHER = Heading("teacher")
TRAIN = Heading("optimization")
SPEED = Heading("speed")
RUN = Heading("run")


class DistillOptions(Options):
    """
    Trains the student of stage 2, a vanilla VAR on focus tokens, together with its teacher: the same weights plus
    alias-gate cross-attention, which looks at the alias tokens and passes on what it learns from them. Needs a
    finished `bash run.sh tokenizer`, or published weights. Run the same command again to resume an interrupted run.
    """

    stage = "distill"

    preset: str = shared.preset(
        DATA, "where all other defaults come from; without it the tokenizer's (with --data, paper in place of demo)"
    )
    tokenizer: str = DATA(
        "runs/tokenizer",
        "run folder of a finished `tokenizer`, or a file of VQVAE weights such as vae_ch160v4096z32.pth (needs --data, "
        "--teacher off, and --val-share where the data has no val/)",
        metavar="RUN|FILE",
        identity=False,
    )
    patch_nums: tuple[int, ...] | None = shared.patch_nums(DATA)
    blur: str = shared.blur(DATA, BLURS)
    focus_states: int | None = shared.focus_states(DATA)
    rho_max: float | None = shared.rho_max(DATA)
    data: str = DATA(
        "",
        "ImageFolder with train/CLASS/*.JPEG and val/CLASS/*.JPEG, or any folder that the tokenizer takes; without it what the "
        "tokenizer was trained on",
        metavar="DIR",
    )
    val_share: float | None = shared.val_share(DATA)
    unfinished: bool = shared.unfinished(DATA)
    small_images: str = shared.small_images_as_run(DATA)
    crops: int = DATA(
        None,
        "fixed random crops of each image, used in turn; 0 draws a new one every epoch, as VAR does (needs --cache off)",
        non_negative(int),
    )
    hflip: bool = DATA(False, "also train on the mirror image of each crop")
    crop_scale: float = shared.crop_scale(DATA)
    cache: str = DATA(
        "",
        "folder of the token cache, made when it is missing; without this option it is RUN/tokens of the tokenizer, or "
        "FILE.tokens; off: tokenize while training",
        metavar="DIR|off",
        identity=False,
    )
    class_numbers: str = DATA(
        "",
        "labels of the class folders: those of ImageNet's 1000 wnids, or of the list of all folder names in a file; without it "
        "the data's own, from 0",
        metavar="imagenet|FILE",
    )
    init: str = DATA(
        "", "VAR weights to start from, as upstream publishes them (var_d20.pth fits preset vanilla)", metavar="FILE"
    )
    init_classes: str = DATA(
        "",
        "classes of --init, by number or name, from whose embeddings the data's classes start, one for each in the order of "
        "the labels; without it they start afresh where the numbers of classes differ",
        metavar="LIST",
    )

    depth: int = STUDENT(None, "D, blocks of the VAR; its width is 64 D", positive(int))
    num_classes: int = STUDENT(
        None,
        "classes of the class embedding, 0: as many as the data has; upstream's demos need 1000",
        non_negative(int),
    )
    shared_aln: str = STUDENT(
        "auto", "one AdaLN for all blocks; auto is on from d36, as upstream's", choices=("auto", "on", "off")
    )
    attention: str = STUDENT(
        "auto",
        "of the training pass: upstream's dense mask, five block-causal groups, or one call per scale (equal to 1e-6); auto is "
        "grouped on CUDA, where calls without a mask take the flash kernel, and dense on a CPU",
        choices=("auto", "dense", "grouped", "per-scale"),
        told=True,
    )

    teacher: str = TEACHER(
        "on",
        "; ".join(f"{word}: {what}" for word, (_, _, what) in KINDS.items()) + "; off: VAR's own training",
        choices=(*KINDS, OFF),
    )
    teacher_from: str = TEACHER(
        "",
        "of frozen: run folder of a finished `distill` with --teacher separate or ema, whose student and tokenizer are like this "
        "one's",
        metavar="RUN",
        added=True,
    )
    teacher_decay: float = TEACHER(
        0.999, "of ema: of the average, min(decay, (1 + n) / (10 + n)) in step n", share, added=True
    )
    teacher_aliases: str = TEACHER(
        "own",
        "alias tokens that the teacher is shown in training: the image's own, or as controls those of another image of the batch, "
        "one code everywhere, or none: then no alias gates are built (only ema, and frozen)",
        choices=("own", "other", "constant", "none"),
        added=True,
    )
    teacher_blocks: int = TEACHER(2, "M, last blocks that run twice", positive(int))
    mask: str = TEACHER(
        "causal",
        "alias tokens a scale sees: those of the states before its own, or (privileged) of its own too",
        choices=("causal", "privileged"),
    )
    alias_scales: int = TEACHER(
        0, "only the last so many scales see alias tokens; 0: all that the mask allows", non_negative(int)
    )
    lambda_feat: float = TEACHER(1.0, "weight of feature distillation; of ema 0 unless given", non_negative(float))
    feature_distance: str = TEACHER(
        "normalized",
        "between features: mean square after a LayerNorm, or (printed) eq. 13's plain L2 norm, summed over tokens and channels",
        choices=("normalized", "printed"),
        added=True,
    )
    alias_values: str = TEACHER(
        "centred",
        "of the cross-attention: alias embeddings minus their mean over images, or (whole) as printed in eq. 10",
        choices=("centred", "whole"),
        added=True,
    )
    lambda_logit: float = TEACHER(0.5, "weight of logit distillation (KL); of ema 1 unless given", non_negative(float))
    temperature_logit: float = TEACHER(
        1.0, "T of logit distillation: KL of softmax(logits / T), times T^2", positive(float), added=True
    )
    teacher_lr: float = TEACHER(
        0.1,
        "learning rate of the alias gates, as a factor on the student's; with a high one the student is worse in the "
        "early steps",
        positive(float),
    )

    steps: int = TRAIN(None, "optimizer steps in all", positive(int))
    batch_size: int = shared.batch_size(TRAIN)
    accumulate: int = shared.accumulate(TRAIN)
    lr: float = TRAIN(
        None,
        "peak learning rate (VAR: 1e-4 at a batch of 256)"
        + "".join(f"; above d{d} {name} has {v['lr']} and {v['steps']} steps" for name, (d, v) in DEEPER.items()),
        positive(float),
    )
    seed: int = TRAIN(0, "seed of weights, data order, crops and dropped labels")

    precision: str = SPEED(
        "auto",
        "autocast of the networks (losses and token lookups stay fp32); auto is bf16 on CUDA (fp16 before compute capability "
        "8), fp32 on a CPU",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    tokens_precision: str = SPEED(
        "auto",
        "arithmetic of the encoders that make the tokens; auto is tf32 on CUDA, as in VAR's own training, fp32 on a CPU",
        choices=("auto", "fp32", "tf32", "bf16"),
    )
    parallel: str = SPEED(
        "ddp",
        "with several processes: copies of the model, or (fsdp, FSDP2) shards of it for d30 and d36",
        choices=("ddp", "fsdp"),
        told=True,
    )
    grad_checkpoint: bool = SPEED(False, "recompute activations in the backward pass", told=True)
    compile: bool = SPEED(False, "torch.compile the blocks that run once", told=True)
    workers: int = shared.workers(SPEED)
    device: str = shared.device(SPEED)

    out: str = RUN(
        "",
        "run folder; without it runs/distill-dD (of drawn pictures runs/distill-letters-dD)",
        metavar="DIR",
        identity=False,
    )
    resume: str = shared.resume(RUN)
    extend: bool = shared.extend(RUN)
    log: str = shared.log(RUN)
    save_every: int = RUN(
        None, "steps between checkpoints, 0: at the end and when interrupted", non_negative(int), identity=False
    )
    keep: int = RUN(
        None, "number of checkpoints to keep; with 1 there is none to fall back on", positive(int), identity=False
    )
    picture_every: int = RUN(None, "steps between validations, with samples drawn", positive(int), identity=False)
    log_every: int = RUN(
        None, "steps between records of every scale's loss and accuracy", positive(int), identity=False
    )
    val_images: int = RUN(
        None, "validate on at most this many images, evenly spread over the data", positive(int), identity=False
    )
    samples: int = RUN(None, "images drawn at every validation, 0: none", non_negative(int), identity=False)
    dry_run: bool = shared.dry_run(RUN)
    gpu_memory: float = shared.gpu_memory(RUN)

    @classmethod
    def choose_preset(cls, typed: Mapping[str, object]) -> str:
        """That of the tokenizer's run, vanilla for a file of weights; where there is no run yet, or that of the demo's photographs
        is given --data, as for a tokenizer.

        Raises:
            UsageError: the run's configuration names no preset of this version.
        """
        return preset_of_tokenizer(str(typed.get("tokenizer") or ""), str(typed.get("data") or ""))

    @classmethod
    def implied(cls, typed: Mapping[str, object], name: str, stage: Stage) -> dict[str, object]:
        """The weights of a teacher that is an average: self-distillation is by outputs. Of drawn pictures, the tokenizer that
        `tokenizer` writes without --out. Of deep students, what the preset has for them."""
        weights = {"lambda_feat": 0.0, "lambda_logit": 1.0} if typed.get("teacher") == EMA else {}
        blocks, deeper = DEEPER.get(name, (0, {}))
        depth = typed.get("depth", stage["depth"])
        of_depth = deeper if blocks and isinstance(depth, int) and depth > blocks else {}
        return {"tokenizer": default_tokenizer_run(str(typed.get("data") or "")), **of_depth, **weights}

    @classmethod
    def why_not(cls, flag: str) -> str:
        """Of an option of `tokenizer` alone."""
        if flag.removeprefix("--").replace("-", "_") not in TokenizerOptions.fields():
            return ""
        return "it is one of `tokenizer`, and image size, token maps, codes and pyramid come from the tokenizer (--tokenizer)"

    def idle(self) -> frozenset[str]:
        """The options without effect, given the others."""
        of_teacher: tuple[str, ...] = (
            "teacher_blocks",
            "mask",
            "alias_scales",
            "lambda_feat",
            "lambda_logit",
            "teacher_lr",
        )
        of_gates = ("mask", "alias_scales", "alias_values", "teacher_lr")
        if self.teacher == OFF:
            return frozenset((*of_teacher, "feature_distance", "alias_values", "temperature_logit"))
        if self.teacher == FROZEN:  # its geometry is that of its run
            return frozenset((*of_gates, "teacher_blocks"))
        return frozenset(of_gates if self.teacher_aliases == "none" else ())

    def several_processes(self) -> bool:
        return True
