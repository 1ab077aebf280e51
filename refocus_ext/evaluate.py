"""`bash run.sh eval`: of samples with --samples, else of a tokenizer."""

from __future__ import annotations

from refocus_ext.config import EvalOptions
from refocus_ext.errors import UsageError

OF_TOKENIZERS = ("tokenizer", "data", "images", "lpips_weights")
OF_SAMPLES = ("reference", "depth")


def main(options: EvalOptions) -> int:
    """Runs the command; returns its exit code."""
    check(options)
    if options.samples:
        from refocus_ext import evaluate_samples

        return evaluate_samples.main(options)
    from refocus_ext import evaluate_tokenizer

    return evaluate_tokenizer.main(options)


def check(options: EvalOptions) -> None:
    """Raises UsageError where options of both kinds are given, of which one would be ignored."""
    foreign = OF_TOKENIZERS if options.samples else OF_SAMPLES
    if typed := [name for name in foreign if getattr(options, name) != getattr(EvalOptions, name)]:
        flag = "--" + typed[0].replace("_", "-")
        both = "goes with a tokenizer, not with --samples" if options.samples else "needs --samples NPZ_OR_DIR"
        raise UsageError(f"{flag} {both}; leave one of them out." if options.samples else f"{flag} {both}.")
    if options.samples and not options.reference:
        raise UsageError(f"--samples needs --reference NPZ_OR_DIR; ADM's file for ImageNet 256 is {REFERENCE_URL}.")


REFERENCE_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/VIRTUAL_imagenet256_labeled.npz"
