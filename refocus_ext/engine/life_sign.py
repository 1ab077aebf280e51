"""running.json: what a run leaves in its folder while its process lives, so that `status` can tell a running one from a dead one.

It names the process (host, boot, pid, when it began), the last steps with their times, and when it was written: every 10 seconds
with the steps, and by a thread every 30 where steps, validation or a token cache take longer. It is removed when the run ends. One
that a killed process left behind does not mislead: on the same machine its process is not there any more (a pid that was given to
another process has another beginning), and seen from another machine its last sign grows old. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FILE = "running.json"
EVERY = 10.0  # seconds between two signs
AT_LEAST = 30.0  # seconds after which the thread gives one
BEATS = 12  # signs kept, for the rate
PATIENCE = 300.0  # seconds without a sign after which a process of another machine may be dead

Life = Literal["alive", "dead", "silent"]


class LifeSign:
    """Written when a run's folder is opened and while it trains; removed by `end`, or when the process exits by itself.

    Args:
        run: the run folder; this process is the only one that writes to it.
    """

    def __init__(self, run: Path, every: float = EVERY, at_least: float = AT_LEAST) -> None:
        self.path, self.every, self.at_least = run / FILE, every, at_least
        self.told = -float("inf")
        self.beats: list[tuple[int, float]] = []
        self.facts = {**_process(), "began": time.time(), "token": uuid.uuid4().hex}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._write()
        self._end = weakref.finalize(self, _remove, self.path, self.facts["token"], os.getpid(), self._lock, self._over)
        threading.Thread(target=_keep_alive, args=(weakref.ref(self), self._over, at_least), daemon=True).start()

    def beat(self, step: int) -> None:
        """The run lives and has done `step` steps; written at most every `every` seconds."""
        with self._lock:
            if time.monotonic() - self.told >= self.every:
                self.beats = [*self.beats, (step, time.time())][-BEATS:]
                self._write()

    def alive(self) -> None:
        """The process lives, whatever it does."""
        with self._lock:
            if not self._over.is_set() and time.monotonic() - self.told >= self.at_least:
                self._write()

    def end(self) -> None:
        self._end()

    def _write(self) -> None:
        """Whole, but not synced: after a power cut it is worth nothing, and a busy disk must not delay a step."""
        self.told = time.monotonic()
        beside = self.path.with_name(f".{FILE}.{os.getpid()}.part")
        try:
            beside.write_text(json.dumps({**self.facts, "at": time.time(), "beats": self.beats}) + "\n")
            os.replace(beside, self.path)
        except OSError as error:
            self.told = float("inf")
            print(
                f"warning: {self.path} could not be written ({error.strerror}); the run goes on, `status` will take it for dead",
                file=sys.stderr,
            )


def _keep_alive(sign: weakref.ref[LifeSign], over: threading.Event, every: float) -> None:
    while not over.wait(every):
        if (living := sign()) is None:
            return
        living.alive()
        del living  # otherwise it could not end while this waits


def _remove(path: Path, token: str, pid: int, lock: threading.Lock, over: threading.Event) -> None:
    """Removes a sign that is still this process's own: not that of a later run, and not from a forked loader process."""
    if os.getpid() != pid:
        return
    over.set()
    with lock, contextlib.suppress(OSError, ValueError, AttributeError):
        if json.loads(path.read_text()).get("token") == token:
            path.unlink()


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "place": _place(), "pid": os.getpid(), "started": _started(os.getpid())}


def _place() -> str:
    """What two processes share that see each other's pids: the host, since its last boot, and the container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process began, in ticks since boot; "" if the system does not tell, or there is no such process."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # of a dead process that its parent has not asked after
    return ""


def _lives(pid: int, started: str) -> bool:
    if started:
        return _started(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


@dataclass(frozen=True)
class Seen:
    """A life sign as it was found.

    Attributes:
        began, at: when the process opened the folder, and when it wrote this; seconds since 1970.
        beats: (steps done, when), oldest first; empty before the first step.
        here: whether this machine knows the process, and `life` is therefore no guess.
    """

    host: str
    pid: int
    began: float
    beats: tuple[tuple[int, float], ...]
    here: bool
    lives: bool  # as far as it is known here
    at: float = 0.0
    token: str = ""

    @property
    def last(self) -> float:
        return max(self.at, self.beats[-1][1] if self.beats else self.began)

    def silent_for(self, now: float) -> float:
        """Seconds since the last sign; 0 where another machine's clock is ahead."""
        return max(0.0, now - self.last)

    def seconds_per_step(self) -> float | None:
        """Over the last signs; None before there are two."""
        (first, begin), (last, end) = (self.beats[0], self.beats[-1]) if self.beats else ((0, 0.0), (0, 0.0))
        return (end - begin) / (last - first) if last > first and end > begin else None

    def patience(self) -> float:
        """Seconds without a sign that are nothing unusual."""
        return max(PATIENCE, 10 * (self.seconds_per_step() or 0.0))

    def life(self, now: float) -> Life:
        """ "silent": of a process of another machine that has not been heard of for long."""
        if self.here:
            return "alive" if self.lives else "dead"
        return "alive" if self.silent_for(now) <= self.patience() else "silent"


def look(run: Path) -> Seen | None:
    """The life sign in a run folder; None without one, or if it cannot be read."""
    try:
        found = json.loads((run / FILE).read_text())
        return _seen(found)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seen(found: Mapping[str, Any]) -> Seen:
    here = found["place"] == _place()
    pid = int(found["pid"])
    return Seen(
        host=str(found["host"]),
        pid=pid,
        began=float(found["began"]),
        beats=tuple((int(step), float(at)) for step, at in found["beats"]),
        here=here,
        lives=here and _lives(pid, str(found["started"])),
        at=float(found.get("at", 0.0)),
        token=str(found.get("token", "")),
    )


def other_writer(folder: Path, patience: float = 2 * AT_LEAST) -> Seen | None:
    """Another process that writes to a folder, if one does. Of a process of another machine a sign that is not old is watched for
    `patience` seconds: it lives if it gives another one.
    """
    seen = look(folder)
    if seen is None or (seen.here and (not seen.lives or seen.pid == os.getpid())):
        return None
    if seen.here:
        return seen
    if seen.life(time.time()) == "silent":
        return None
    print(
        f"{folder} has a sign of life of a process on {seen.host}; waiting up to {patience:.0f} s for another one",
        flush=True,
    )
    end = time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(min(1.0, patience / 4))
        again = look(folder)
        if again is None or again.token != seen.token:
            return None
        if again.at > seen.at:
            return again
    return None
