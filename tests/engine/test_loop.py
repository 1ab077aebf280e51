"""Small parts of the training loop: schedule, gradient norm, progress, plan and checks."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import write_images
from torch import nn
from torch.utils.data import DataLoader

from refocus_ext import invocation
from refocus_ext.engine.checks import check_run_options, check_share
from refocus_ext.engine.optimization import gradient_norm, not_finite, warmup_cosine
from refocus_ext.engine.progress import Progress, duration
from refocus_ext.engine.sharding import load_named_optimizer_state, named_optimizer_state
from refocus_ext.engine.training import RunPlan, _without_traceback
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.images.sources.folder import image_folder
from refocus_ext.images.sources.interface import ImageSource


@pytest.fixture
def images(tmp_path: Path) -> ImageSource:
    write_images(tmp_path / "data" / "train" / "ant", 6)
    return image_folder(str(tmp_path / "data"), "train")


def options(**changes: Any) -> Any:
    values = dict(
        out="run", steps=9, batch_size=4, accumulate=2, seed=0, workers=0, save_every=2, picture_every=3,
        resume="auto", preset="paper", data="data", dry_run=False, grad_checkpoint=False, compile=False,
    )  # fmt: skip
    return SimpleNamespace(**(values | changes))


def test_schedule_rises_to_the_peak_and_falls_to_its_end() -> None:
    factors = [warmup_cosine(step, 11, 5, 0.1) for step in range(11)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == pytest.approx(1.0) and factors[-1] == pytest.approx(0.1)
    half = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 2 / 5))
    assert factors[7] == pytest.approx(half) and factors[5:] == sorted(factors[5:], reverse=True)


def test_gradients_are_clipped_to_a_norm_and_only_where_asked() -> None:
    layer = nn.Linear(2, 1, bias=False)
    for clip, kept in ((0.0, 5.0), (10.0, 5.0), (2.0, 2.0)):
        layer.weight.grad = torch.tensor([[3.0, 4.0]])
        assert gradient_norm(layer, clip).item() == pytest.approx(5.0)
        assert layer.weight.grad.norm().item() == pytest.approx(kept, rel=1e-4)
    one, bad = torch.tensor(1.0), [torch.tensor(value) for value in (math.nan, math.inf, -math.inf)]
    assert not not_finite(one, one) and all(not_finite(one, value) for value in bad)


def test_progress_prints_values_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(0, 2, images_per_step=8, every=0)
    progress.update(1, {"loss": 1234.5})
    progress.update(2, {"loss": 0.012345})
    progress.close()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step 1/2  loss 1,23") and "img/s" in first and first.endswith("left")
    assert last.startswith("step 2/2  loss 0.0123") and last.endswith("0:00 left")
    quiet = Progress(0, 2, images_per_step=8, every=0, quiet=True)
    quiet.update(1, {})
    quiet.say("nothing")
    assert not capsys.readouterr().out
    assert [duration(seconds) for seconds in (59.6, 61, 3723)] == ["1:00", "1:01", "1:02:03"]


def test_a_plan_holds_what_the_options_say() -> None:
    plan = RunPlan.of(options())
    assert (plan.out, plan.steps, plan.batch_size, plan.save_every) == (Path("run"), 9, 4, 2)
    assert plan.images_at_once(1) == 2 and plan.images_at_once(2) == 1 and plan.images_at_once(8) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resume": "nowhere.pt"}, "--resume nowhere.pt"),
        ({"accumulate": 3}, "--accumulate 3 does not divide --batch-size 4"),
        ({"batch_size": 8}, "larger than the data set of 6 images"),
        ({"batch_size": 8, "data": ""}, "--preset paper is meant for --data DIR"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(images: ImageSource, change: dict[str, Any], words: str) -> None:
    check_run_options(options(), images)
    with pytest.raises(UsageError, match=words):
        check_run_options(options(**change), images)


def test_a_batch_is_shared_evenly_or_refused(images: ImageSource) -> None:
    check_share(options(), images, 2)
    with pytest.raises(UsageError, match=r"--batch-size.*choose a multiple of 6"):
        check_share(options(), images, 3)


def test_optimizer_states_travel_by_name() -> None:
    """Into an optimizer whose parameters come in another order."""

    def made(names: str) -> tuple[nn.ModuleDict, torch.optim.AdamW]:
        torch.manual_seed(0)
        module = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "ab"})
        groups = [{"params": [module[name].weight], "lr": rate} for name, rate in zip(names, (0.1, 0.2), strict=True)]
        return module, torch.optim.AdamW(groups)

    module, optimizer = made("ab")
    (module["a"].weight.sum() + 3 * module["b"].weight.sum()).backward()  # type: ignore[operator]
    optimizer.step()
    other, theirs = made("ba")
    load_named_optimizer_state(other, theirs, named_optimizer_state(module, optimizer))
    ours_b, theirs_b = module.get_parameter("b.weight"), other.get_parameter("b.weight")
    assert torch.equal(theirs.state[theirs_b]["exp_avg"], optimizer.state[ours_b]["exp_avg"])
    assert [group["lr"] for group in theirs.param_groups] == [0.2, 0.1]


def test_a_killed_loader_process_is_one_sentence(tmp_path: Path) -> None:
    """As the system's out-of-memory killer ends it."""
    invocation.remember(["tokenizer", "--workers", "1"])
    with pytest.raises(
        RunFailed, match=r"a loader process was killed.*lower --workers.*bash run\.sh tokenizer --workers 1"
    ):
        list(_without_traceback(DataLoader(Killed(), num_workers=1)))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="a bug"):
        list(_without_traceback(raising()))


class Killed:
    """Images of which each ends its reader."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def raising() -> Iterator[None]:
    yield None
    raise RuntimeError("a bug")


def test_the_schedule_of_an_extended_run() -> None:
    plan = RunPlan.of(options(steps=20), schedule=((0, 9), (6, 15), (12, 20)))
    assert [plan.steps_at(step) for step in (0, 5, 6, 11, 12, 19)] == [9, 9, 15, 15, 20, 20]
    assert RunPlan.of(options()).steps_at(3) == 9
