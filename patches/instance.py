"""Patching one object by swapping its class: the mechanism every patch of this project uses.

`obj.__class__` becomes a subclass of (patch, stock class). The class, the module and every other instance stay stock;
removing the patch restores the class and deletes the attributes that the patch added.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch import nn

from patches.upstream import PINNED_REVISION, Upstream, loaded_upstreams


class PatchError(TypeError):
    """The patch cannot bind to the object, or upstream has drifted from the version the patch was written for."""


class InstancePatch:
    """Base of the classes that are mixed in over an upstream class.

    `host` names the upstream class; `fingerprints` maps each overridden upstream method to the hash of the source it
    was written for (see `fingerprint`). Attributes a patch needs live in the object's `__dict__`, never in its
    parameters, buffers or submodules, so that the state dict does not change.
    """

    host: ClassVar[str]
    fingerprints: ClassVar[dict[str, str]]


def fingerprint(function: Any) -> str:
    """The first 12 hex digits of the sha256 of a function's source, dedented, trailing blanks removed."""
    lines = textwrap.dedent(inspect.getsource(function)).replace("\r\n", "\n").splitlines()
    return hashlib.sha256("\n".join(line.rstrip() for line in lines).encode()).hexdigest()[:12]


def check_drift(patch: type[InstancePatch], stock: type) -> None:
    """Raises a PatchError that names method and patch if an upstream method is not the one the patch was written for."""
    for name, expected in patch.fingerprints.items():
        if not hasattr(stock, name):
            raise PatchError(f"upstream has no {patch.host}.{name}, which {patch.__name__} overrides.")
        if (found := fingerprint(getattr(stock, name))) != expected:
            raise PatchError(
                f"{patch.__name__} overrides upstream's {patch.host}.{name} as it is at {PINNED_REVISION[:7]} "
                f"(fingerprint {expected}), but the one found has fingerprint {found}: upstream has drifted."
            )


def _stock_class(patch: type[InstancePatch], obj: object) -> tuple[type, Upstream]:
    for upstream in loaded_upstreams():
        if isinstance(obj, getattr(upstream, patch.host)):
            return type(obj), upstream
    hint = " (unwrap it first: model._orig_mod)" if hasattr(obj, "_orig_mod") else ""
    raise PatchError(
        f"{patch.__name__} patches a {patch.host} built by patches.upstream, not a {type(obj).__name__}{hint}."
    )


_subclasses: dict[tuple[type, type], type] = {}


def _subclass(patch: type[InstancePatch], stock: type) -> type:
    key = (patch, stock)
    if key not in _subclasses:
        names = {"__doc__": patch.__doc__, "__module__": patch.__module__, "_stock_class": stock}
        _subclasses[key] = type(patch.__name__, key, names)
    return _subclasses[key]


def swap_class(obj: nn.Module, patch: type[InstancePatch], **attributes: Any) -> None:
    """Binds `patch` to this object; a second call only renews the attributes.

    Raises:
        PatchError: the object is not the patch's host, upstream has drifted, or an attribute would hide one of the object's.
    """
    if not isinstance(obj, patch):
        stock, upstream = _stock_class(patch, obj)
        if upstream.kind == "submodule":  # the stand-in is versioned together with the patches
            check_drift(patch, getattr(upstream, patch.host))
        if taken := [name for name in attributes if hasattr(obj, name)]:
            raise PatchError(f"{patch.__name__} needs the attribute '{taken[0]}', which {stock.__name__} already has.")
        obj.__class__ = _subclass(patch, stock)
    obj.__dict__.update(attributes)
    obj.__dict__["_patch_attributes"] = tuple(attributes)


def restore_class(obj: nn.Module) -> None:
    """Removes the patch; an unpatched object is unchanged."""
    stock = getattr(type(obj), "_stock_class", None)
    if stock is None:
        return
    for name in (*obj.__dict__["_patch_attributes"], "_patch_attributes"):
        obj.__dict__.pop(name, None)
    obj.__class__ = stock


class Patch:
    """Something that can be applied to a model and removed again; see `patched`."""

    def hosts(self, model: Any) -> Sequence[nn.Module]:
        """The objects of `model` whose class the patch swaps; never empty."""
        raise NotImplementedError

    def apply(self, model: Any) -> None:
        raise NotImplementedError

    def remove(self, model: Any) -> None:
        for host in self.hosts(model):
            restore_class(host)


@contextlib.contextmanager
def patched(model: Any, patch: Patch) -> Iterator[Any]:
    """`with patched(vae, Focus(pyramid)): ...`: patched inside, exactly as before afterwards, also after an exception."""
    hosts = patch.hosts(model)
    before = [(host, host.__class__, dict(host.__dict__)) for host in hosts]
    try:
        patch.apply(model)  # inside the try: a failure half-way is undone
        yield model
    finally:
        for host, stock, attributes in before:
            added = [name for name in host.__dict__ if name not in attributes]
            for name in added:
                del host.__dict__[name]
            if "_patch_attributes" in attributes:
                for name in (*attributes["_patch_attributes"], "_patch_attributes"):
                    host.__dict__[name] = attributes[name]
            host.__class__ = stock
