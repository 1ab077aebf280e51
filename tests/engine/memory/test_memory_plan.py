"""How a step is split to fit into memory, and what is said where it does not."""

from __future__ import annotations

import pytest
import torch

from refocus_ext.engine.devices import DeviceKind
from refocus_ext.engine.memory.plan import ROOM, Budget, MemoryNeed, splits
from refocus_ext.errors import UsageError
from refocus_ext.options.kinds import AUTO

GIB = 2**30
PLAIN = MemoryNeed(fixed=2 * GIB, activations=6 * GIB, gradients=GIB)
RECOMPUTED = MemoryNeed(fixed=2 * GIB, activations=GIB, gradients=GIB)
CUDA = torch.device("cuda", 0)


def budget(free: int | None, share: int = 32, checkpointed: bool = False) -> Budget:
    return Budget(PLAIN, RECOMPUTED, share, free, checkpointed)


@pytest.mark.parametrize("free", [20, 40, 80, 141, 300])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_auto_is_the_smallest_number_that_fits(free: int, checkpointed: bool) -> None:
    plan = budget(free * GIB, checkpointed=checkpointed)
    chosen = plan.choose(AUTO)
    fits = [number for number in splits(32) if plan.need.of(32, number) <= ROOM * free * GIB]
    assert chosen == fits[0]
    plan.require(chosen, CUDA, "")


def test_a_number_stays_and_without_numbers_auto_is_one() -> None:
    assert budget(GIB).choose(8) == 8
    assert budget(None).choose(AUTO) == 1
    assert budget(GIB).choose(AUTO) == 32, "single images where nothing fits"


def test_a_refusal_names_need_and_free_and_what_fits() -> None:
    with pytest.raises(UsageError) as refused:
        budget(80 * GIB).require(1, CUDA, "")
    said = str(refused.value)
    assert said.startswith("32 images at once need about 194.0 GiB on each process, but cuda:0 has 80.0 GiB free; ")
    assert said.endswith("give --accumulate 4 or --accumulate 1 --grad-checkpoint.") and said.count(".") == 3
    with pytest.raises(UsageError, match=r"give --accumulate 4\.$"):
        budget(20 * GIB, checkpointed=True).require(1, CUDA, "")
    with pytest.raises(UsageError, match=r"give --accumulate 8 --grad-checkpoint\.$"):
        Budget(PLAIN, RECOMPUTED, 16, 6 * GIB, False).require(1, CUDA, "")
    with pytest.raises(UsageError, match=r"; choose less: one image needs .* GiB\.$"):
        budget(3 * GIB).require(32, CUDA, "choose less")


def test_a_cpu_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can swap, which is its user's choice."""
    budget(GIB).require(1, torch.device("cpu"), "")
    monkeypatch.setattr(DeviceKind, "swaps", False)
    with pytest.raises(UsageError):
        budget(GIB).require(1, torch.device("cpu"), "")


def test_gradients_stay_beside_the_next_micro_batch() -> None:
    need = MemoryNeed(fixed=0, activations=10, gradients=30)
    assert need.of(2, 1) == 30 and need.of(4, 1) == 40 and need.of(4, 2) == 50
