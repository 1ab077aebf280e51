"""Optimizer states by parameter names, and FSDP2: a VAR spread over the processes, for d30 and d36.

Each process saves its own shards (`sharded_checkpoints.py`). A run can resume with another number of processes or unsharded,
and from the single file of an unsharded run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from patches.model_parts import blocks_of
from patches.protocols import VAR, as_module
from refocus_ext.engine.distributed import World
from refocus_ext.engine.sharded_checkpoints import load_shards

_WHOLE = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(var: VAR, world: World, kept: int, dtype: torch.dtype = torch.float32) -> VAR:
    """Shards a VAR block by block, in place; apply patches first.

    Args:
        dtype: of autocast. In half precision the blocks' weights are gathered in it, which halves the traffic; gradients are
            reduced in fp32, and the optimizer's copies stay fp32.
        kept: number of last blocks that stay whole between forward and backward, because the teacher's pass calls their
            parts and the head directly, where no hook would gather the weights again.
    """
    # never deep-copy: patched blocks have attributes that a deep copy would follow
    mesh = init_device_mesh(world.device.type, (world.size,))
    blocks = blocks_of(var)
    first_kept = len(blocks) - kept
    # autocast casts the inputs of products itself and leaves the rest of a block in fp32, so inputs are not cast here
    half = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = MixedPrecisionPolicy() if dtype == torch.float32 else half
    for number, block in enumerate(blocks):
        fully_shard(block, mesh=mesh, reshard_after_forward=number < first_kept, mp_policy=policy)
    fully_shard(as_module(var), mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(as_module(var), "autoregressive_infer_cfg")
    return var


def average_gradients(module: nn.Module, world: World) -> None:
    """Averages the gradients over processes of a module that each process holds whole."""
    if world.size == 1:
        return
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    torch.distributed.all_reduce(flat)
    flat /= world.size
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def named_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with parameter names in place of numbers, as torch.distributed.checkpoint writes it."""
    state = optimizer.state_dict()
    names = _names(module, optimizer)
    groups = [group | {"params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: value for number, value in state["state"].items()}, "param_groups": groups}


def load_named_optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads what `named_optimizer_state` or `whole_state` returned."""
    numbers = {name: number for number, name in enumerate(_names(module, optimizer))}
    saved = {name: group for group in state["param_groups"] for name in group["params"]}
    groups = []
    for group in optimizer.state_dict()["param_groups"]:
        names = [name for name, number in numbers.items() if number in group["params"]]
        groups.append(saved[names[0]] | {"params": group["params"]})
    optimizer.load_state_dict(
        {"state": {numbers[name]: value for name, value in state["state"].items()}, "param_groups": groups}
    )


def _names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in its order."""
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def parts_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """This process's parts of model and optimizer, as torch.distributed.checkpoint saves them; whole tensors if unsharded."""
    return {
        "model": dcp.get_model_state_dict(module),
        "optimizer": dcp.get_optimizer_state_dict(module, optimizer),
    }


def load_parts(module: nn.Module, optimizer: torch.optim.Optimizer, folder: str, *, sharded: bool) -> None:
    """Reads a sharded checkpoint into a model and its optimizer, which may be sharded otherwise or not at all."""
    state = parts_of(module, optimizer)
    load_shards(folder, state, together=sharded)
    dcp.set_model_state_dict(module, state["model"])
    dcp.set_optimizer_state_dict(module, optimizer, state["optimizer"])


def load_model(module: nn.Module, state: dict[str, Any], name: str) -> None:
    """Loads the weights `name` of a checkpoint's state, sharded or not, into a model that this process holds whole."""
    if "sharded" not in state:
        module.load_state_dict(state[name], strict=True)
        return
    parts = {"model": dcp.get_model_state_dict(module)}
    load_shards(state["sharded"], parts, together=False)
    dcp.set_model_state_dict(module, parts["model"])


def whole_weights(module: nn.Module) -> dict[str, Any]:
    """The state dict with whole tensors, on rank 0; call it on every process."""
    return dcp.get_model_state_dict(module, options=_WHOLE)


def load_whole_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, model: dict[str, Any], state: dict[str, Any]
) -> None:
    """Loads whole tensors, which every process has read, into the sharded model and optimizer."""
    dcp.set_model_state_dict(module, model, options=_WHOLE)
    dcp.set_optimizer_state_dict(module, optimizer, state, options=_WHOLE)
