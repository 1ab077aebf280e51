"""The run folder: configuration, metrics, checkpoints, picture and finished weights of one run."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refocus_ext import invocation
from refocus_ext.engine.boards import TENSORBOARD, Board, open_board
from refocus_ext.engine.checkpoints import checkpoints_of
from refocus_ext.engine.distributed import World
from refocus_ext.engine.life_sign import LifeSign, other_writer
from refocus_ext.engine.same_run import Comparison, RunIdentity
from refocus_ext.errors import UsageError, named
from refocus_ext.storage.atomic import remove_torn, save_json, sha256, written_beside
from refocus_ext.storage.results import results_folder


class Opening(NamedTuple):
    """What an invocation finds in the folder of its run.

    Attributes:
        notes: sentences for the user.
        schedule: for every extension and the beginning, the first step and the steps in all that hold from it on.
    """

    notes: list[str]
    schedule: list[dict[str, int]]


class RunFolder:
    """Opens or creates `path` for a run.

    Args:
        identity: to resume an existing run, it must be the same as that run's.
        config: further entries of config.json, JSON-serializable.
        keep: number of checkpoints kept.
        fresh: move an existing run aside instead of resuming it.
        extend: the run may have fewer steps than `identity`, which it is then extended to.
        log: where metrics and pictures go beside metrics.jsonl; see `boards.py`.

    Raises:
        UsageError: the folder holds another run or something else, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        identity: RunIdentity,
        config: Mapping[str, Any] | None = None,
        *,
        fresh: bool = False,
        keep: int = 2,
        extend: bool = False,
        log: str = TENSORBOARD,
    ) -> None:
        self.path, self.kind = path, log
        opening = check_run_folder(path, identity, fresh=fresh, extend=extend)
        self.notes = opening.notes
        self.moved_to = self._move_aside() if fresh else None
        entries = (
            {"command": identity.command} | identity.record() | dict(config or {}) | invocation.record(identity.command)
        )
        self.config = entries | {"schedule": opening.schedule} | self._weights()
        try:
            path.mkdir(parents=True, exist_ok=True)
            remove_torn(path)
            save_json(path / "config.json", self.config)
        except OSError as error:
            raise UsageError(f"cannot write to --out {path} ({error.strerror}); choose another folder.") from None
        self.checkpoints = checkpoints_of(path, keep)
        self._metrics: Any = None
        self._board: Board | None = None
        self._life = LifeSign(path)

    def _move_aside(self) -> Path | None:
        if not (self.path / "config.json").is_file():
            return None
        number = next(n for n in range(1, 10_000) if not self.path.with_name(f"{self.path.name}.{n}").exists())
        return self.path.rename(self.path.with_name(f"{self.path.name}.{number}"))

    def _weights(self) -> dict[str, Any]:
        """Checksums of weights that an earlier invocation of this run wrote."""
        file = self.path / "config.json"
        known = json.loads(file.read_text()).get("weights") if file.is_file() else None
        return {"weights": known} if known else {}

    def holds(self, *names: str) -> bool:
        """Whether these weight files exist and match their checksums in config.json."""
        known = self.config.get("weights", {})
        files = {name: self.path / name for name in names}
        return all(file.is_file() and sha256(file) == known.get(name) for name, file in files.items())

    def record_weights(self, *names: str) -> None:
        """Records the sha256 of weight files in config.json, next to the pyramid they belong to."""
        self.config["weights"] = self.config.get("weights", {}) | {name: sha256(self.path / name) for name in names}
        save_json(self.path / "config.json", self.config)

    # ------------------------------------------------------------------ metrics

    def begin_metrics(self, step: int) -> None:
        """Opens metrics.jsonl and the board to continue after `step`; later records (of lost steps) are dropped."""
        file = self.path / "metrics.jsonl"
        if file.is_file():
            kept = [line for line in file.read_text().splitlines() if _step_of(line) <= step]
            with written_beside(file) as beside:
                beside.write_text("".join(line + "\n" for line in kept))
        self._metrics = open(file, "a", buffering=1)  # noqa: SIM115 - closed in `close`
        self._board = open_board(self.kind, self.path, step, self.config.get("options", {}))

    def log(self, step: int, values: Mapping[str, float], prefix: str = "") -> None:
        """One record in metrics.jsonl, and the same scalars on the board."""
        named = {f"{prefix}{name}": float(value) for name, value in values.items()}
        self._metrics.write(json.dumps({"step": step, **named}) + "\n")
        assert self._board is not None
        self._board.scalars(step, named)
        self._life.beat(step)

    def log_image(self, step: int, name: str, image_HWC: Any) -> None:
        assert self._board is not None
        self._board.image(step, name, image_HWC)

    def close(self) -> None:
        for open_file in (self._metrics, self._board):
            if open_file is not None:
                open_file.close()
        self._life.end()

    def metrics_line(self) -> str:
        """Where the numbers of the run are, for its closing lines."""
        board = self._board.where() if self._board else ""
        return f"  metrics.jsonl  every step{board and f'; also in {board}'}"


def check_run_folder(path: Path, identity: RunIdentity, *, fresh: bool = False, extend: bool = False) -> Opening:
    """What the folder holds of this run; writes nothing.

    Raises:
        UsageError: `path` cannot be the folder of the run with this identity.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path} is a file; choose a folder.")
    with named("--out"):
        results_folder(str(path))
    _refuse_running(path)
    begun = (path / "config.json").is_file()
    if not begun and path.is_dir() and any(path.iterdir()):
        raise UsageError(f"--out {path} holds files but no run; choose an empty or new folder.")
    steps = int(identity.options.get("steps", 0))
    if not begun or fresh:
        if extend:
            raise UsageError(f"--extend continues a run, but --out {path} holds none to continue; omit it.")
        return Opening([], [{"from_step": 0, "steps": steps}])
    config, found = _compared(path, identity)
    if found.refused and identity.command and config.get("command") == identity.command and untrained(path):
        return Opening(
            [f"the run in {path} has not made a step; this one, with other options, takes its place"],
            [{"from_step": 0, "steps": steps}],
        )
    schedule = schedule_in(config)
    before = schedule[-1]["steps"]
    if extend and "steps" in found.refused:
        if steps < before:
            raise UsageError(
                f"--extend cannot lower the {before} steps of the run in {path} to {steps}; give more steps."
            )
        del found.refused["steps"]
        first = checkpoints_of(path).newest_step() or 0
        schedule = [entry for entry in schedule if entry["from_step"] < first] + [{"from_step": first, "steps": steps}]
        found.told.append(f"steps = {steps} from step {first} on (was {before})")
    if found.refused:
        raise UsageError(_refusal(path, found.refused, identity.following if steps > before else None))
    return Opening([f"the same run as before, but for {' and '.join(found.told)}"] if found.told else [], schedule)


def _refuse_running(path: Path) -> None:
    """Two processes must not write one folder."""
    if (seen := other_writer(path)) is not None:
        where = "" if seen.here else f" on {seen.host}"
        raise UsageError(
            f"--out {path} is being trained by the process {seen.pid}{where}; wait for it (`bash run.sh status` shows it), stop it "
            f"with `kill {seen.pid}`{where}, which saves, or choose another --out."
        )


def _compared(path: Path, identity: RunIdentity) -> tuple[dict[str, Any], Comparison]:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text())
        return config, identity.compare(config)
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{file} is not a run's configuration; choose another --out.") from None


def untrained(path: Path) -> bool:
    """Whether the run in `path` was stopped before its first step."""
    metrics = path / "metrics.jsonl"
    trained = metrics.is_file() and metrics.stat().st_size
    return not trained and checkpoints_of(path).newest_step() is None


def _refusal(path: Path, refused: Mapping[str, str], following: frozenset[str] | None) -> str:
    """The sentence; `following` are the options that go with more steps, None where there are none."""
    clauses = list(refused.values())
    more = f" and {len(clauses) - 4} more" if len(clauses) > 4 else ""
    why = " (the learning-rate schedule depends on the steps)" if "steps" in refused else ""
    extend = (
        ", --extend to train that run for more steps"
        if following is not None and refused.keys() <= {"steps", *following}
        else ""
    )
    return (
        f"--out {path} holds a run with {' and '.join(clauses[:4])}{more}{why}; choose another --out{extend}, or --resume "
        "never to move that run aside and start a new one."
    )


def schedule_in(config: Mapping[str, Any]) -> list[dict[str, int]]:
    """The schedule of a run's configuration; that of an old one has one entry."""
    known = config.get("schedule")
    return (
        [dict(entry) for entry in known] if known else [{"from_step": 0, "steps": config["identity"].get("steps", 0)}]
    )


def schedule_for(world: World, path: Path) -> tuple[tuple[int, int], ...]:
    """`schedule_of` as rank 0 reads it: another machine may not see the file yet."""
    return world.gather(schedule_of(path) if world.main else ())[0]


def schedule_of(path: Path) -> tuple[tuple[int, int], ...]:
    """(first step, steps in all that hold from it on) of the run in `path`, for its beginning and every extension."""
    entries = schedule_in(json.loads((path / "config.json").read_text()))
    return tuple((entry["from_step"], entry["steps"]) for entry in entries)


def trained_with(path: Path, option: str, value: str) -> bool:
    """Whether `path` holds a run that has saved a checkpoint and whose identity has this value of the option."""
    try:
        same = json.loads((path / "config.json").read_text())["identity"].get(option) == value
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return same and checkpoints_of(path).newest_step() is not None


def require_space(path: Path, need: int, *, fresh: bool = False) -> None:
    """Raises UsageError unless the disk of the run folder, which need not exist yet, has room for `need` bytes in all.

    Args:
        fresh: an existing run will be moved aside; otherwise what it holds of them already is not needed again.
    """
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    held = 0 if fresh else sum(_size(entry) for entry in (*checkpoints_of(path).paths(), *path.glob("*.pth")))
    if (free := shutil.disk_usage(there).free) < need - held:
        raise UsageError(
            f"--out {path} has {free / 2**30:.2f} GiB free, but checkpoints and weights of this run need "
            f"{(need - held) / 2**30:.2f} GiB{' more' if held else ''}; free some space or choose another --out."
        )


def _size(entry: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return sum(_size(inner) for inner in entry.iterdir()) if entry.is_dir() else entry.stat().st_size


def _step_of(line: str) -> float:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return json.loads(line)["step"]
    return float("inf")  # an incomplete last line, left by a killed process
