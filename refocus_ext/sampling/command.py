"""`bash run.sh sample`: images of a student as a grid, a strip, a comparison, an edit, or a set for FID."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from patches import load_upstream
from refocus_ext.engine.distributed import World, join_world, preflight_device
from refocus_ext.errors import UsageError, named
from refocus_ext.sampling.jobs import (
    compare,
    describe_guidance,
    drawer,
    edit_image,
    grid,
    guidance_of,
    open_student,
    ready,
    set_plan,
    strip,
)
from refocus_ext.sampling.options import SampleOptions
from refocus_ext.sampling.sample_set import PngParts, npz_parts, write_npz_set, write_png_set
from refocus_ext.sampling.student import load_student
from refocus_ext.sampling.student_files import distill_runs, is_unfinished

LARGEST_SEED = 2**64 - 1  # of a torch.Generator
JOBS = ("npz", "folder", "steps_strip", "compare", "edit")


def main(options: SampleOptions) -> int:
    """Runs the command; returns its exit code."""
    job = check_options(options)
    with join_world(options.device) as world:
        if job not in ("npz", "folder") and not world.main:
            return 0  # one process draws pictures
        if world.main:
            print(load_upstream().describe())
        return run(options, job, world)


def preflight(options: SampleOptions, processes: int) -> None:
    """Raises the UsageErrors that `main` would raise in every process; uses no GPU and writes nothing."""
    job = check_options(options)
    preflight_device(options.device)
    if job in ("npz", "folder"):
        with named("--student"):
            source = options.student or newest_run()
            student = load_student(source, vae=options.vae or None, class_names=options.class_names or None)
        plan = set_plan(student, options)
        with named(f"--{job}"):
            if job == "npz":
                npz_parts(Path(options.npz), plan)
            else:
                PngParts(Path(options.folder), plan)


def check_options(options: SampleOptions) -> str:
    """The job: one of JOBS, or 'grid'.

    Raises:
        UsageError: the options do not go together.
    """
    jobs = [name for name in JOBS if getattr(options, name)]
    if options.edit:
        jobs = [name for name in jobs if name != "folder"]
    if len(jobs) > 1:
        first, second = ("--" + name.replace("_", "-") for name in jobs[:2])
        raise UsageError(f"{first} and {second} are two jobs; give one of them at a time.")
    job = jobs[0] if jobs else "grid"
    if options.edit and not options.mask:
        raise UsageError("--edit needs --mask X0,Y0,X1,Y1, the box to repaint, for example 0.25,0.25,0.75,0.75.")
    if (options.mask or options.outside) and not options.edit:
        raise UsageError("--mask and --outside need --edit IMAGE.")
    if options.per_class and (job not in ("npz", "folder") or options.count):
        raise UsageError("--per-class needs --npz or --folder, and excludes --count.")
    for name in ("out", "steps_strip"):
        word = getattr(options, name)
        if word and Path(word).suffix.lower() != ".png":
            raise UsageError(f"--{name.replace('_', '-')} {word} is a picture; end its name in .png.")
    if options.out and job in ("npz", "folder", "steps_strip"):
        raise UsageError(f"--out is for pictures; --{job.replace('_', '-')} already names its file.")
    if options.rng == "batch" and job not in ("grid", "compare"):
        raise UsageError("--rng batch draws one batch as upstream does; use it with a grid or --compare only.")
    if options.rng == "batch" and options.seed > LARGEST_SEED:
        raise UsageError(f"--seed {options.seed} is too large for --rng batch; give at most {LARGEST_SEED}.")
    if options.compare and options.student:
        raise UsageError("--compare A B names both students; omit --student.")
    return job


def run(options: SampleOptions, job: str, world: World) -> int:
    """Loads the student and does the job."""
    if options.compare:
        return compare(options.compare, options, world)
    student = open_student(options, options.student or newest_run(world.say), world)
    if job in ("npz", "folder"):
        world.say(describe_guidance(guidance_of(student, options, for_set=True), options, student.device))
    with ready(student, options):
        if job == "npz":
            plan = set_plan(student, options)
            with named("--npz"):
                return write_npz_set(Path(options.npz), plan, drawer(student, options), world)
        if job == "folder":
            return write_png_set(Path(options.folder), set_plan(student, options), drawer(student, options), world)
        if job == "edit":
            return edit_image(student, options)
        return strip(student, options) if job == "steps_strip" else grid(student, options)


# ------------------------------------------------------------------------------------------------ the student


def newest_run(say: Callable[[str], None] = lambda line: None) -> str:
    """The newest distill run under runs/ that is finished, or if none is the newest; prints its name if there are several.

    Raises:
        UsageError: there is none.
    """
    found = distill_runs()
    if not found:
        raise UsageError(
            "this folder has no runs/distill-*; train a student with `bash run.sh distill`, or give --student RUN, or a "
            "folder with upstream's var_d16.pth and vae_ch160v4096z32.pth."
        )
    finished = [run for run in found if not is_unfinished(run)]
    chosen = (finished or found)[-1]
    if len(found) > 1:
        newest = "the newest finished one" if 0 < len(finished) < len(found) else "the newest"
        say(f"--student {chosen}, {newest} of {len(found)} runs; give --student to choose another")
    return str(chosen)
