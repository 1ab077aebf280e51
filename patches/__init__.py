"""The only code that names upstream's internals: finding VAR, building it, and patching instances of it."""

from patches.block_causal import BlockCausal
from patches.fast_sampling import FastSampling
from patches.focus_vqvae import Focus
from patches.instance import Patch, PatchError, patched
from patches.upstream import Upstream, UpstreamError, load_upstream, submodule_present

__all__ = [
    "BlockCausal",
    "FastSampling",
    "Focus",
    "Patch",
    "PatchError",
    "Upstream",
    "UpstreamError",
    "load_upstream",
    "patched",
    "submodule_present",
]
