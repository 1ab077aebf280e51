"""Which parameters decay, and an optimizer's state that has other groups."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from refocus_ext.engine.optimization import decay_groups, load_optimizer
from refocus_ext.errors import RunFailed


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(4, 3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.linear = nn.Linear(4, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def names(module: nn.Module, group: dict[str, list[nn.Parameter]]) -> set[str]:
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in module.named_parameters() if id(parameter) in ids}


def test_matrices_and_kernels_decay() -> None:
    network = Network()
    decayed, others = decay_groups(network, 0.05, peak=1.0)
    assert names(network, decayed) == {"conv.weight", "linear.weight"} and "weight_decay" not in decayed
    assert names(network, others) == {"codes.weight", "conv.bias", "norm.weight", "norm.bias", "linear.bias"}
    assert others["weight_decay"] == 0.0 and decayed["peak"] == others["peak"] == 1.0


def test_without_decay_all_are_one_group_in_their_order() -> None:
    network = Network()
    (group,) = decay_groups(network, 0.0, peak=1.0)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(a is b for a, b in zip(group["params"], trained, strict=True)) and set(group) == {"params", "peak"}
    assert len(decay_groups(nn.GroupNorm(1, 2), 0.05)) == 1, "no empty group"


def test_a_decaying_step_leaves_codes_norms_and_biases_without_gradient_alone() -> None:
    network = Network()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    optimizer = torch.optim.AdamW(decay_groups(network, 0.5), lr=0.1, weight_decay=0.5)
    torch.stack([0 * parameter.sum() for parameter in network.parameters()]).sum().backward()
    optimizer.step()
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"conv.weight", "linear.weight"}


def stepped(optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
    for number, parameter in enumerate(network.parameters()):
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.1 * (number + 1))
    optimizer.step()


def test_a_run_of_an_earlier_version_goes_on_as_it_began() -> None:
    """All its parameters decay, and each keeps its own moments."""
    torch.manual_seed(0)
    whole, resumed = Network(), Network()
    resumed.load_state_dict(whole.state_dict())
    plain = torch.optim.AdamW(decay_groups(whole, 0.0), lr=0.1, weight_decay=0.5)
    stepped(plain, whole)
    resumed.load_state_dict(whole.state_dict())
    ours = torch.optim.AdamW(decay_groups(resumed, 0.5), lr=0.1, weight_decay=0.5)
    load_optimizer(ours, copy.deepcopy(plain.state_dict()), decay_groups(resumed, 0.0))
    for optimizer, network in ((plain, whole), (ours, resumed)):
        stepped(optimizer, network)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_state_of_other_groups_is_refused_in_a_sentence() -> None:
    network = Network()
    ours = torch.optim.AdamW(decay_groups(network, 0.05), lr=1.0)
    another = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=1.0)
    with pytest.raises(
        RunFailed, match=r"groups of \[2\] parameters where this version has \[2, 5\]; .*--resume never"
    ):
        load_optimizer(ours, another.state_dict(), decay_groups(network, 0.0))
    load_optimizer(ours, ours.state_dict(), decay_groups(network, 0.0))
    assert len(ours.param_groups) == 2
