"""Finds VAR (the submodule `var_upstream/`, else the stand-in) and builds its models without side effects.

Upstream assumes that it owns the process: its packages are called `dist`, `models` and `utils`, its builder replaces
`reset_parameters` of every `nn.Linear` and `nn.Conv2d` by a no-op permanently, its constructors print, and its device is
a module global. This file limits these effects to a call: afterwards the process is unchanged.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from refocus_ext.errors import RunFailed

ROOT = Path(__file__).resolve().parent.parent
SUBMODULE = ROOT / "var_upstream"
PINNED_REVISION = "78b95394fc5896192e3a003e4b295f8ea743c48f"
# sha256 over the Python files of the pinned revision that this project imports (see `source_digest`).
PINNED_DIGEST = "4189a5f3db6e37fc3b991e67316574b309c3a96ef2c3cf23e5985b5c9b4554a3"
SOURCES = ("dist.py", "trainer.py", "models/*.py", "utils/*.py")
SHADOWED = ("dist", "models", "utils", "trainer")  # the absolute names by which upstream's files import each other
VAR_PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


class UpstreamError(RunFailed):
    """The submodule is required but missing, or is not the revision the patches were written for."""


def submodule_present() -> bool:
    """Whether `var_upstream/` is populated."""
    return (SUBMODULE / "models" / "vqvae.py").is_file()


def source_digest(root: Path = SUBMODULE) -> str:
    """sha256 of upstream's Python files (names and contents, line endings normalised)."""
    digest = hashlib.sha256()
    for path in sorted(p for pattern in SOURCES for p in root.glob(pattern)):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ isolated import

_import_lock = threading.RLock()
_loaded: dict[str, ModuleType] = {}  # bare name -> upstream's module


def _is_shadowed(name: str) -> bool:
    return name.split(".")[0] in SHADOWED


def import_isolated(name: str, root: Path = SUBMODULE) -> ModuleType:
    """Imports `name` from upstream's folder; `sys.path` and the caller's own `models`, `utils`, ... are unchanged.

    The modules are registered as `var_upstream.NAME`, so that tracebacks, pickling and `torch.compile` find them.
    """
    with _import_lock:
        if name in _loaded:
            return _loaded[name]
        hidden = {key: sys.modules.pop(key) for key in list(sys.modules) if _is_shadowed(key)}
        sys.modules.update(_loaded)
        sys.path.insert(0, str(root))
        folder = os.getcwd()
        try:
            os.chdir(root)  # importing utils.arg_util asks git for its revision
            importlib.import_module(name)
        finally:
            os.chdir(folder)
            sys.path.remove(str(root))
            found = {key: sys.modules.pop(key) for key in list(sys.modules) if _is_shadowed(key)}
            sys.modules.update(hidden)
        for key, module in found.items():
            _loaded[key] = module
            module.__name__ = f"var_upstream.{key}"
            sys.modules[module.__name__] = module
            for value in vars(module).values():
                if isinstance(value, type) and value.__module__ == key:
                    value.__module__ = module.__name__
        return _loaded[name]


# ------------------------------------------------------------------------------------------------ contained build

_PRISTINE = {
    cls: cls.reset_parameters
    for cls in (
        nn.Linear,
        nn.LayerNorm,
        nn.BatchNorm2d,
        nn.SyncBatchNorm,
        nn.Conv1d,
        nn.Conv2d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.GroupNorm,
        nn.Embedding,
    )
}


@contextlib.contextmanager
def pristine_initializers() -> Iterator[None]:
    """Inside, PyTorch's layers initialise themselves; afterwards the classes are restored.

    Raises:
        UpstreamError: upstream's `build_vae_var` (or the notebook's first cell) disabled the initialisers before this module was
            imported.
    """
    if any(not str(method.__module__).startswith("torch.") for method in _PRISTINE.values()):
        raise UpstreamError(
            "reset_parameters of torch's layers was replaced before refocus was imported (upstream's build_vae_var "
            "does that), so new layers would hold uninitialized memory; import patches.upstream first."
        )
    before = {cls: cls.__dict__.get("reset_parameters") for cls in _PRISTINE}
    for cls, method in _PRISTINE.items():
        setattr(cls, "reset_parameters", method)
    try:
        yield
    finally:
        for cls, own in before.items():
            if own is None:
                delattr(cls, "reset_parameters")
            else:
                setattr(cls, "reset_parameters", own)


# VAR's recipe, which the paper keeps: the initial gain of AdaLN's gammas falls with depth.
def adaln_gamma_init(depth: int) -> float:
    """`alng` of VAR's recipe for a depth: 1e-3 up to d20, 1e-4 to d24, 1e-5 to d30, 5e-6 beyond."""
    for limit, gain in ((20, 1e-3), (24, 1e-4), (30, 1e-5)):
        if depth <= limit:
            return gain
    return 5e-6


@dataclass(frozen=True)
class Upstream:
    """One implementation of VAR: the submodule or the stand-in. Attributes are its classes, by upstream's names."""

    kind: str
    VQVAE: Any
    VAR: Any
    VectorQuantizer2: Any
    AdaLNSelfAttn: Any
    AdaLNBeforeHead: Any
    SelfAttention: Any
    sample_with_top_k_top_p_: Any
    gumbel_softmax_with_rng: Any

    def describe(self) -> str:
        """The line with the upstream in use, which every command prints."""
        if self.kind == "submodule":
            return f"upstream: VAR submodule var_upstream at {PINNED_REVISION[:7]}"
        return (
            "upstream: stand-in refocus_ext/vanilla_var (submodule var_upstream is not populated; "
            "`git submodule update --init` fetches it)"
            if not submodule_present()
            else "upstream: stand-in refocus_ext/vanilla_var (set by REFOCUS_UPSTREAM)"
        )

    def build_vae(
        self,
        *,
        vocab_size: int = 4096,
        z_channels: int = 32,
        ch: int = 160,
        patch_nums: Sequence[int] = VAR_PATCH_NUMS,
        share_quant_resi: int = 4,
        using_znorm: bool = False,
        beta: float = 0.25,
        dropout: float = 0.0,
        test_mode: bool = True,
        device: torch.device | str = "cpu",
    ) -> Any:
        """A VQVAE with PyTorch's initial weights; frozen and in eval mode if `test_mode`, as upstream builds it."""
        with self._contained(device):
            vae = self.VQVAE(
                vocab_size=vocab_size,
                z_channels=z_channels,
                ch=ch,
                dropout=dropout,
                beta=beta,
                using_znorm=using_znorm,
                share_quant_resi=share_quant_resi,
                v_patch_nums=tuple(patch_nums),
                test_mode=test_mode,
            )
            return vae.to(device)

    def build_var(
        self,
        vae: Any,
        *,
        depth: int = 16,
        num_classes: int = 1000,
        shared_aln: bool = False,
        attn_l2_norm: bool = True,
        embed_dim: int | None = None,
        num_heads: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Any:
        """A VAR as upstream's builder sizes it (width 64 x depth, heads = depth), with its weight initialisation."""
        with self._contained(device):
            var = self.VAR(
                vae_local=vae,
                num_classes=num_classes,
                depth=depth,
                embed_dim=embed_dim or 64 * depth,
                num_heads=num_heads or depth,
                drop_rate=0.0,
                attn_drop_rate=0.0,
                drop_path_rate=0.1 * depth / 24,
                norm_eps=1e-6,
                shared_aln=shared_aln,
                cond_drop_rate=0.1,
                attn_l2_norm=attn_l2_norm,
                patch_nums=tuple(vae.quantize.v_patch_nums),
            )
            if torch.device(device).type != "cpu":  # it was built there, and fake weights cannot be moved
                var = var.to(device)
            var.init_weights(init_adaln=0.5, init_adaln_gamma=adaln_gamma_init(depth), init_head=0.02, init_std=-1)
        # Neither is a buffer in upstream, so `.to(device)` does not move them.
        var.rng = torch.Generator(device=device)
        var.uniform_prob = var.uniform_prob.to(device)
        return var

    @contextlib.contextmanager
    def _contained(self, device: torch.device | str) -> Iterator[None]:
        with pristine_initializers(), on_device(self, device), contextlib.redirect_stdout(io.StringIO()):
            yield


@contextlib.contextmanager
def on_device(upstream: Upstream, device: torch.device | str) -> Iterator[None]:
    """Inside, upstream's module-global device is `device` (its own choice is CUDA if available)."""
    dist = _loaded.get("dist") if upstream.kind == "submodule" else None
    if dist is None:
        yield
        return
    names = vars(dist)
    before, names["__device"] = names["__device"], torch.device(device)
    try:
        yield
    finally:
        names["__device"] = before


# ------------------------------------------------------------------------------------------------ choosing one


@functools.cache
def _load_submodule() -> Upstream:
    if not submodule_present():
        raise UpstreamError(
            "the submodule var_upstream is not populated; run `git submodule update --init` where GitHub can be "
            "reached, or unset REFOCUS_UPSTREAM to run on the stand-in."
        )
    if (found := source_digest()) != PINNED_DIGEST:
        raise UpstreamError(
            f"var_upstream is not the unmodified pinned revision {PINNED_REVISION[:7]} (its sources hash to {found[:12]}, "
            f"expected {PINNED_DIGEST[:12]}); `git submodule update --init --force` restores it."
        )
    # Upstream calls torch.cuda.amp.autocast, deprecated since 2.4, on every forward; only its own modules are silenced.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"var_upstream\.")
    models = import_isolated("models")
    var, blocks = import_isolated("models.var"), import_isolated("models.basic_var")
    helpers = import_isolated("models.helpers")
    return Upstream(
        kind="submodule",
        VQVAE=models.VQVAE,
        VAR=models.VAR,
        VectorQuantizer2=models.VectorQuantizer2,
        AdaLNSelfAttn=var.AdaLNSelfAttn,
        AdaLNBeforeHead=blocks.AdaLNBeforeHead,
        SelfAttention=blocks.SelfAttention,
        sample_with_top_k_top_p_=helpers.sample_with_top_k_top_p_,
        gumbel_softmax_with_rng=helpers.gumbel_softmax_with_rng,
    )


@functools.cache
def _load_stand_in() -> Upstream:
    import refocus_ext.vanilla_var as stand_in

    names = [name for name in Upstream.__dataclass_fields__ if name != "kind"]
    return Upstream(kind="stand-in", **{name: getattr(stand_in, name) for name in names})


def load_upstream(kind: str | None = None) -> Upstream:
    """The submodule if it is populated, else the stand-in.

    Args:
        kind: "submodule" or "stand-in" to require one; None reads the environment variable REFOCUS_UPSTREAM, or else
            takes what is available.

    Raises:
        UpstreamError: the submodule is required and missing, or is not the pinned revision.
    """
    kind = kind or os.environ.get("REFOCUS_UPSTREAM") or ("submodule" if submodule_present() else "stand-in")
    if kind not in ("submodule", "stand-in"):
        raise UpstreamError(f"REFOCUS_UPSTREAM is '{kind}'; it takes 'submodule' or 'stand-in'.")
    return _load_submodule() if kind == "submodule" else _load_stand_in()


def loaded_upstreams() -> list[Upstream]:
    """The implementations this process has loaded so far (patches may bind to their classes)."""
    return [load() for load in (_load_submodule, _load_stand_in) if load.cache_info().currsize]
