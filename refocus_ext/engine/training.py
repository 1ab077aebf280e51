"""The training loop of both stages: steps, agreement between processes, saving, resuming, monitoring.

A stage derives from `Training` and defines a step. This file handles everything that must survive a kill, a NaN or a
change in the number of processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from refocus_ext import invocation
from refocus_ext.counting import counted
from refocus_ext.engine.checkpoints import CheckpointStore, checkpoints_of, load_checkpoint
from refocus_ext.engine.devices import kind_of, uncompiled
from refocus_ext.engine.distributed import World
from refocus_ext.engine.interruption import Interruption, from_loader, leave_signals_to_parent
from refocus_ext.engine.memory.watch import MemoryWatch
from refocus_ext.engine.progress import Progress
from refocus_ext.engine.run_folder import RunFolder
from refocus_ext.engine.sharded_checkpoints import ShardedSaver
from refocus_ext.engine.step_result import Pending, Read, StepResult
from refocus_ext.errors import RunFailed
from refocus_ext.images.order import StepBatches
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.seeds import Stream, stream_seed
from refocus_ext.storage.atomic import save_tensors

NON_FINITE_IN_A_ROW = 5


class RunOptions(Protocol):
    """The options that every training command has; see `RunPlan`."""

    @property
    def out(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def picture_every(self) -> int: ...
    @property
    def resume(self) -> str: ...


@dataclass(frozen=True)
class RunPlan:
    """How long a run trains, on which batches, and when it saves and validates.

    Args:
        out: the run folder.
        batch_size: images per optimizer step, over all processes and micro-batches.
        accumulate: micro-batches per step on each process.
        workers: loader processes per process.
        save_every: steps between checkpoints; 0 saves only at the end and when interrupted.
        picture_every: steps between validations.
        keep: checkpoints kept.
        resume: "auto", "never", or a checkpoint file.
        schedule: (first step, steps in all that hold from it on) of an extended run, in order; empty for another one.
        gone: the weights the run started from, if their file is not there any more; it can then only be resumed.
    """

    out: Path
    steps: int
    batch_size: int
    accumulate: int
    seed: int
    workers: int
    save_every: int
    picture_every: int
    resume: str
    schedule: tuple[tuple[int, int], ...] = ()
    gone: str = ""
    keep: int = 2

    @classmethod
    def of(cls, options: RunOptions, schedule: tuple[tuple[int, int], ...] = (), gone: str = "") -> RunPlan:
        return cls(
            out=Path(options.out),
            steps=options.steps,
            batch_size=options.batch_size,
            accumulate=options.accumulate,
            seed=options.seed,
            workers=options.workers,
            save_every=options.save_every,
            picture_every=options.picture_every,
            resume=options.resume,
            schedule=schedule,
            gone=gone,
            keep=getattr(options, "keep", 2),
        )

    def steps_at(self, step: int) -> int:
        """The steps in all over which the schedule is laid out at `step` (0-based): those before an extension, or after."""
        return next((steps for first, steps in reversed(self.schedule) if step >= first), self.steps)

    def images_at_once(self, processes: int) -> int:
        """Images per micro-batch on each of `processes` processes."""
        return max(1, self.batch_size // self.accumulate // processes)


class TrainingData(Protocol):
    """What the loop needs from a data set; its items, indexed by `SampleKey`, have a field `broken`."""

    images: ImageSource
    known_broken: set[int]
    broken_limit: int

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...


class Training(ABC):
    """A run's loop over optimizer steps.

    Args:
        run: the run folder; None on every rank but 0.
    """

    def __init__(self, plan: RunPlan, world: World, run: RunFolder | None, data: TrainingData) -> None:
        self.plan, self.world, self.run, self.data = plan, world, run, data
        self.step = 0  # optimizer steps done
        self.skipped_in_a_row = 0
        self.saved_at = -1
        self.saver: ShardedSaver | None = None  # of a sharded run
        self.unread: list[Pending] = []  # steps taken whose numbers have not been read
        self.reads_late = kind_of(world.device).runs_behind
        self.memory = MemoryWatch(plan.batch_size, plan.accumulate, world)

    # ------------------------------------------------------------------ what a stage defines

    @abstractmethod
    def train_step(self, step: int, batches: Sequence[Any]) -> StepResult:
        """One optimizer step (0-based number) from its micro-batches; if it was bad on any process, no process may have changed
        its weights. It must not read a value from the device (see `step_result.py`)."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, except the step number: tensors and plain values, on every process."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    @abstractmethod
    def observe(self, progress: Progress) -> None:
        """Validation and picture at the current step; called on every process, rank 0 writes."""

    @abstractmethod
    def weights(self) -> dict[str, dict[str, Any]]:
        """The finished weights, file name -> state dict, on every process; written at every checkpoint."""

    @abstractmethod
    def finish(self) -> None:
        """Prints the closing lines, on rank 0 after the last step."""

    progress_values: tuple[str, ...] = ("loss",)
    precision = "auto"  # the option; only "fp32" asks for full fp32 in what autocast leaves in fp32

    # ------------------------------------------------------------------ the loop

    def fit(self, interruption: Interruption) -> int:
        """Trains from the current step to the last; returns the exit code."""
        with kind_of(self.world.device).tuned(tf32=self.precision != "fp32"):
            return self._fit(interruption)

    def _fit(self, interruption: Interruption) -> int:
        self._resume()
        if self.step >= self.plan.steps:
            return self._already_done()
        if self.run:
            self.run.begin_metrics(self.step)
        progress = Progress(self.step, self.plan.steps, self.plan.batch_size, quiet=not self.world.main)
        try:
            for batches in self._steps():
                code = self._one_step(batches, progress, interruption)
                if code and self.step < self.plan.steps:
                    self._read_all(progress)
                    self.save()
                    self._finish_saving()
                    progress.say(f"saved step {self.step}; {invocation.to_resume()}")
                    return code
            self._finish_saving()
        finally:
            if self.saver:
                self.saver.abandon()
            progress.close()
            if self.run:
                self.run.close()
        if self.world.main:
            with uncompiled():
                self.finish()
        return 0

    def _one_step(self, batches: Sequence[Any], progress: Progress, interruption: Interruption) -> int:
        """Returns the exit code if a process was interrupted, otherwise 0."""
        torch.manual_seed(stream_seed(self.plan.seed, Stream.STEP, self.step, self.world.rank))
        with self.memory.watched(self.step):
            result = self.train_step(self.step, batches)
        self.step += 1
        flags = [*interruption.flags(), float(self.saver is not None and self.saver.failed)]
        flags.append(float(self._note_broken(batches)))
        self.unread.append(Pending(self.step, result, flags, self.world))
        last = self.step == self.plan.steps
        observes, saves = (last or _due(self.step, every) for every in (self.plan.picture_every, self.plan.save_every))
        code = self._read_some(progress, keep=int(self.reads_late and not (observes or saves)))
        if observes:
            with self.memory.watched_validation(self.step), uncompiled():
                self.observe(progress)
        if saves:
            self.save()
        return code

    def _read_some(self, progress: Progress, keep: int) -> int:
        """Reads and logs the numbers of the steps taken, all but the last `keep`; returns the exit code that they bring."""
        code = 0
        while len(self.unread) > keep:
            code = self._log(self.unread.pop(0).read(), progress) or code
        return code

    def _read_all(self, progress: Progress) -> None:
        self._read_some(progress, keep=0)

    def _log(self, read: Read, progress: Progress) -> int:
        """Logs a step; returns the exit code if a process was interrupted."""
        *signals, unsaved, new_broken = read.flags
        if unsaved:
            self._finish_saving()
        self._watch_finiteness(read, progress)
        values = {"skipped": 1.0} if read.bad else read.values
        if new_broken:  # on any process; each is told of all, so that all of them stop or none
            self.data.known_broken.update(*self.world.gather(self.data.known_broken))
        values["broken_images"] = float(len(self.data.known_broken))
        if new_broken and len(self.data.known_broken) > self.data.broken_limit:
            raise RunFailed(
                f"{len(self.data.known_broken)} images of {len(self.data)} cannot be decoded, more than the limit of "
                f"{self.data.broken_limit}; check the folder. With these images removed it is other data, for a new run in "
                "another folder."
            )
        if self.run:
            self.run.log(read.step, values, "train/")
        progress.update(read.step, {name: values[name] for name in self.progress_values if name in values})
        return Interruption.code(signals)

    def _watch_finiteness(self, read: Read, progress: Progress) -> None:
        """Names a skipped step; several in a row stop the run and name the batch."""
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if read.bad else 0
        if not read.bad:
            return
        names = self.batch_names(read.step - 1)
        progress.say(f"step {read.step} skipped: its loss or gradient is not finite (images {names})")
        if self.skipped_in_a_row >= NON_FINITE_IN_A_ROW:
            raise RunFailed(
                f"the loss or gradient was not finite in {self.skipped_in_a_row} steps in a row; the last batch was {names}. "
                f"Check these images, or start a new run with a lower learning rate."
            )

    def batch_names(self, step: int, most: int = 4) -> str:
        """The names of the first few images of a step's global batch."""
        (keys,) = StepBatches(len(self.data), self.plan.batch_size, start=step, stop=step + 1, seed=self.plan.seed)
        names = [self.data.images.name(key.index) for key in keys[:most]]
        return ", ".join(names) + (f" and {len(keys) - most} more" if len(keys) > most else "")

    # ------------------------------------------------------------------ data

    def _steps(self) -> Iterable[list[Any]]:
        """The micro-batches of each remaining step, as lists of `accumulate`."""
        plan = self.plan
        batches = StepBatches(
            len(self.data),
            plan.batch_size,
            start=self.step,
            stop=plan.steps,
            seed=plan.seed,
            rank=self.world.rank,
            world=self.world.size,
            accumulate=plan.accumulate,
        )
        loader: DataLoader[Any] = DataLoader(
            self.data,  # type: ignore[arg-type]  # it has what a map-style data set needs
            batch_sampler=batches,
            num_workers=plan.workers,
            worker_init_fn=leave_signals_to_parent,
            pin_memory=kind_of(self.world.device).pins_memory,
            prefetch_factor=4 if plan.workers else None,
        )
        group: list[Any] = []
        for batch in _without_traceback(loader):
            group.append(batch)
            if len(group) == plan.accumulate:
                yield group
                group = []

    def _note_broken(self, batches: Sequence[Any]) -> int:
        """Names each image that was replaced because it cannot be decoded; returns how many were not known."""
        new = {
            int(index) for batch in batches for index in batch.broken.tolist() if index >= 0
        } - self.data.known_broken
        for index in sorted(new):
            print(f"broken image replaced: {self.data.images.name(index)}", flush=True)
        self.data.known_broken |= new
        return len(new)

    # ------------------------------------------------------------------ saving and resuming

    def save(self) -> None:
        """Writes a checkpoint and the finished weights: on rank 0 while the other processes wait, or all processes their shards
        in the background."""
        if self.saved_at == self.step:
            return
        # on every process: gathering sharded tensors needs all of them
        state, weights = self.state_dict(), self.weights()
        if self.saver:
            self.saver.begin(self.step, state, then=lambda: self._write(weights))
        else:
            self._save_whole(state, weights)
        self.saved_at = self.step

    def _finish_saving(self) -> None:
        if self.saver:
            self.saver.finish()

    def _save_whole(self, state: dict[str, Any], weights: dict[str, dict[str, Any]]) -> None:
        error = None
        if self.run:
            for write in (lambda run: run.checkpoints.save(self.step, state), lambda run: self._write(weights)):
                try:  # if the disk is too full for a checkpoint, the weights alone may still fit
                    write(self.run)
                except RunFailed as failed:
                    error = error or failed
        (failed_anywhere,) = self.world.any(error is not None)
        if failed_anywhere:
            raise error or RunFailed("rank 0 could not save.")

    def _write(self, weights: dict[str, dict[str, Any]]) -> None:
        """Writes the weight files and records their checksums in config.json."""
        assert self.run is not None
        try:
            for name, state in weights.items():
                save_tensors(self.run.path / name, state)
            self.run.record_weights(*weights)
        except (OSError, RuntimeError) as error:
            raise RunFailed(f"the weights could not be written to {self.run.path} ({error}).") from error

    def _resume(self) -> None:
        given = self.plan.resume not in ("auto", "never")
        checkpoints = checkpoints_of(self.plan.out)
        state = (
            load_checkpoint(Path(self.plan.resume), self.world)
            if given
            else checkpoints.load_latest(self.world.say, self.world)
        )
        if state is None:
            self._set_aside(checkpoints, 0)
            if self.plan.gone:
                raise RunFailed(
                    f"no intact checkpoint is left in {self.plan.out}, and --init {self.plan.gone}, from which the run started, "
                    "is not there any more; put that file back."
                )
            return
        self.load_state_dict(state)
        self.step = self.saved_at = int(state["step"])
        self._set_aside(checkpoints, self.step)
        self.world.say(f"resuming after step {self.step}")

    def _set_aside(self, checkpoints: CheckpointStore, step: int) -> None:
        """Moves the checkpoints that the run leaves by going on from `step`."""
        if self.run and (moved := checkpoints.set_aside(step)):
            count = counted(len(moved), "newer checkpoint is", "newer checkpoints are")
            self.world.say(f"{count} in {moved[0].parent} now; delete what you do not need")

    def _already_done(self) -> int:
        weights = self.weights()  # on every process: gathering sharded tensors needs all of them
        if self.run and not self.run.holds(*weights):
            self._write(weights)  # the process was killed between writing the checkpoint and the weights
        if self.run:
            self.run.close()
        self.world.say(f"{self.plan.out} is already trained for {self.plan.steps} steps; nothing to do.")
        return 0


def _without_traceback(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's batches; an error in a loader process is raised without that process's traceback."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RunFailed as error:
            raise from_loader(error) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunFailed(
                "a loader process was killed, most likely because the memory (or /dev/shm) of this machine is full; lower "
                f"--workers. To resume from the last checkpoint: {invocation.again()}"
            ) from None
        yield batch


def _due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) is due at `step`."""
    return every > 0 and step % every == 0
