"""`bash run.sh eval`: evaluates samples with --samples, otherwise a tokenizer."""

from __future__ import annotations

from refocus_ext.errors import UsageError, named
from refocus_ext.evaluation.options import EvalOptions
from refocus_ext.storage.results import results_file

ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches"
REFERENCE_URL = f"{ADM}/imagenet/256/VIRTUAL_imagenet256_labeled.npz"
OF_TOKENIZERS = (
    "tokenizer",
    "patch_nums",
    "blur",
    "focus_states",
    "rho_max",
    "data",
    "images",
    "lpips_weights",
    "crop_scale",
)
OF_SAMPLES = ("reference", "depth", "reference_size")
NOT_FOR_WRITING = ("samples", "depth", "json", *OF_TOKENIZERS)


def main(options: EvalOptions) -> int:
    """Runs the command; returns its exit code."""
    check(options)
    if options.write_reference:
        from refocus_ext.evaluation import reference_writer

        return reference_writer.main(options)
    if options.samples:
        from refocus_ext.evaluation import samples

        return samples.main(options)
    from refocus_ext.evaluation import tokenizer

    return tokenizer.main(options)


def preflight(options: EvalOptions, processes: int) -> None:
    """Raises the UsageErrors that `main` would raise in every process; uses no GPU and measures nothing."""
    check(options)
    if options.write_reference:
        from refocus_ext.evaluation import reference_writer

        reference_writer.preflight(options)
    elif options.samples:
        from refocus_ext.evaluation import samples

        samples.preflight(options)


def check(options: EvalOptions) -> None:
    """Raises UsageError if an option would be ignored or is missing, or a result cannot be written."""
    if options.write_reference:
        check_writing(options)
        return
    if options.reference_size:
        raise UsageError(
            "--reference-size is for --write-reference; the images of --reference get the size of the samples."
        )
    if typed := options.given(*(OF_TOKENIZERS if options.samples else OF_SAMPLES)):
        flag = "--" + typed[0].replace("_", "-")
        if options.samples:
            raise UsageError(f"{flag} is for a tokenizer, not for --samples; omit one of them.")
        raise UsageError(f"{flag} needs --samples NPZ_OR_DIR.")
    if options.samples and not options.reference:
        raise UsageError(f"--samples needs --reference NPZ_OR_DIR; ADM's file for ImageNet 256 is {REFERENCE_URL}.")
    if options.json:
        with named("--json"):
            results_file(options.json)


def check_writing(options: EvalOptions) -> None:
    """The same for --write-reference."""
    if typed := options.given(*NOT_FOR_WRITING):
        flag = "--" + typed[0].replace("_", "-")
        raise UsageError(f"--write-reference measures nothing, but writes statistics of --reference; omit {flag}.")
    if not options.reference:
        raise UsageError("--write-reference needs --reference NPZ_OR_DIR, the images whose statistics it writes.")
    with named("--write-reference"):
        if results_file(options.write_reference).suffix != ".npz":
            raise UsageError(f"{options.write_reference} must end in .npz, by which other tools know such files.")
