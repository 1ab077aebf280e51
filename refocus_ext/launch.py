"""`python -m refocus_ext.launch`: starts a command's processes on this machine, passes signals on, and ends with their exit code.

run.sh calls it in the place of torchrun, for three reasons: torchrun dies of SIGUSR1 and SIGUSR2, ends with 1 whatever its
processes ended with, and kills them 30 seconds after SIGTERM, in which a large checkpoint cannot be written.

Imports no torch. The processes find each other by torch's environment variables (RANK, WORLD_SIZE, MASTER_ADDR, ...).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
PATIENCE = 20.0  # seconds in which the others may follow a process that failed, before they are told to
GRACE = 30.0  # seconds between telling and killing them
TICK = 0.1


def launch(words: Sequence[str], processes: int, nodes: int, node: int, address: str, port: int) -> int:
    """Runs `python WORDS` in `processes` processes on this machine, node number `node` of `nodes`.

    Returns:
        The exit code of the first process that ended with another one than 0, or else 0; 128 + N for a process that
        signal N ended, which comes first among those that are found to have ended at the same time.
    """
    began: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for process in began:
            if process.poll() is None:
                process.send_signal(number)

    for number in PASSED_ON:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, pass_on)
    shared = {"WORLD_SIZE": processes * nodes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": node}
    for local in range(processes):
        own = {"RANK": node * processes + local, "LOCAL_RANK": local, "MASTER_ADDR": address, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in (shared | own).items()}
        # in a session of its own: a terminal's Ctrl-C must reach it once, by way of this process
        began.append(subprocess.Popen([sys.executable, *words], env=environment, start_new_session=True))
    return _wait(began)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    code, failed_at, told = 0, 0.0, False
    while running := [process for process in processes if process.poll() is None]:
        code = code or _first_failure(processes)
        now = time.monotonic()
        failed_at = failed_at or (now if code else 0.0)
        if code and now - failed_at > PATIENCE + GRACE:
            for process in running:
                process.kill()
        elif code and now - failed_at > PATIENCE and not told:
            told = True
            for process in running:
                process.terminate()
        time.sleep(TICK)
    return code or _first_failure(processes)


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """The exit code to end with, or 0; says which processes were killed, as they could not say so themselves.

    A process that a signal ended comes before one that failed: within a tick the others may have failed because it was gone.
    """
    codes = [process.returncode or 0 for process in processes]
    for local, code in enumerate(codes):
        if code == -signal.SIGKILL:
            print(
                f"refocus: process {local} of this machine was killed (too little memory?)", file=sys.stderr, flush=True
            )
    signals = [128 - code for code in codes if code < 0]
    return next(iter(signals + [code for code in codes if code > 0]), 0)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main(argv: Sequence[str]) -> int:
    """Flags, `--`, and the words of each process; see `launch`."""
    parser = argparse.ArgumentParser(prog="refocus_ext.launch", allow_abbrev=False)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--master-addr", default="127.0.0.1")
    parser.add_argument("--master-port", type=int, default=0)
    end = list(argv).index("--")
    given = parser.parse_args(argv[:end])
    port = given.master_port or _free_port()
    return launch(argv[end + 1 :], given.processes, given.nnodes, given.node_rank, given.master_addr, port)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
