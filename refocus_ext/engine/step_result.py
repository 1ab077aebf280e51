"""What a training step returns, and how its numbers reach the host: one copy, read a step late where the device runs behind.

A step that reads a value waits until the device has caught up. So nothing in a step reads one: whether it was finite is a
tensor on the device, and the loop reads the numbers of a step while the next one runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from refocus_ext.engine.devices import kind_of
from refocus_ext.engine.distributed import World

Scalars = dict[str, "Tensor | float"]


class StepResult(NamedTuple):
    """A step's numbers for the log, tensors () on the device or plain numbers, and whether it was bad on any process: a bool
    tensor ()."""

    values: Scalars
    bad: Tensor


class Read(NamedTuple):
    """The numbers of a step on the host, means over processes; `flags` are means of what each process gave."""

    step: int
    values: dict[str, float]
    bad: bool
    flags: list[float]


class Pending:
    """The numbers of step `step` (1-based) on their way to the host.

    Args:
        flags: numbers of this process that all must agree on.
    """

    def __init__(self, step: int, result: StepResult, flags: Sequence[float], world: World) -> None:
        self.step, self.count = step, len(flags)
        tensors = {name: value for name, value in result.values.items() if isinstance(value, Tensor)}
        self.names = tuple(tensors)
        self.plain = {name: value for name, value in result.values.items() if not isinstance(value, Tensor)}
        self.order = tuple(result.values)
        wide = kind_of(world.device).wide_sums
        mine = [result.bad.to(wide), *(value.detach().to(wide) for value in tensors.values())]
        given = torch.tensor(list(flags), dtype=wide)
        if world.size > 1:  # the flags travel with the rest in one all-reduce
            together = torch.cat((torch.stack(mine), given.to(world.device, non_blocking=True)))
            self.fetched = kind_of(world.device).fetch(world.sum(together) / world.size)
            self.flags = None
        else:
            self.fetched = kind_of(world.device).fetch(torch.stack(mine))
            self.flags = given.tolist()

    def read(self) -> Read:
        """Waits until they have arrived."""
        bad, *numbers = self.fetched().tolist()
        flags = self.flags
        if flags is None:
            flags = numbers[len(self.names) :]
        values = dict(zip(self.names, numbers, strict=False)) | self.plain
        return Read(self.step, {name: float(values[name]) for name in self.order}, bad > 0, flags)


def added(total: Scalars, terms: Mapping[str, Tensor], share: int) -> None:
    """Adds 1/share of each term to its sum in `total`: the mean over micro-batches."""
    for name, term in terms.items():
        total[name] = total.get(name, 0.0) + term.detach() / share
