"""Finding upstream, and building its models without changing the process."""

from __future__ import annotations

import builtins
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import WITHOUT_SUBMODULE, small_vae
from torch import nn

from patches import Upstream, UpstreamError, load_upstream, submodule_present
from patches import upstream as finder

needs_submodule = pytest.mark.skipif(not submodule_present(), reason=WITHOUT_SUBMODULE)


def test_building_leaves_the_process_as_it_was(upstream: Upstream, capfd: pytest.CaptureFixture[str]) -> None:
    modules, path, printer = set(sys.modules), list(sys.path), builtins.print
    initializers = [nn.Linear.reset_parameters, nn.Conv2d.reset_parameters, nn.LayerNorm.reset_parameters]
    upstream.build_var(small_vae(upstream), depth=2, num_classes=5)
    assert not {"dist", "models", "utils", "trainer"} & (set(sys.modules) - modules)
    assert sys.path == path and builtins.print is printer
    assert [nn.Linear.reset_parameters, nn.Conv2d.reset_parameters, nn.LayerNorm.reset_parameters] == initializers
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_weights_are_initialised(upstream: Upstream) -> None:
    vae = small_vae(upstream)
    for name, parameter in vae.named_parameters():
        assert torch.isfinite(parameter).all() and parameter.abs().max() < 10, name


def test_builds_are_sane_after_upstreams_own_builder_has_run() -> None:
    """build_vae_var and the notebook switch the initialisers off for the process; the contained build brings them back."""
    script = """
import torch
from patches import load_upstream
from torch import nn
up = load_upstream()
for cls in (nn.Linear, nn.LayerNorm, nn.Conv2d):
    cls.reset_parameters = lambda self: None
vae = up.build_vae(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2, 4))
assert all(p.abs().max() < 10 and p.isfinite().all() for p in vae.parameters())
assert vae.encoder.conv_in.weight.std() > 0.05
assert nn.Conv2d.reset_parameters.__name__ == "<lambda>"
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=finder.ROOT)


def test_initialisers_lost_before_import_are_an_error() -> None:
    script = """
from torch import nn
nn.Linear.reset_parameters = lambda self: None
from patches import load_upstream, UpstreamError
try:
    load_upstream().build_vae(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2, 4))
except UpstreamError as error:
    assert "import patches.upstream first" in str(error)
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=finder.ROOT)


def test_no_deprecation_warnings(upstream: Upstream, images: torch.Tensor) -> None:
    vae = small_vae(upstream).eval()
    var = upstream.build_var(vae, depth=2, num_classes=5).eval()
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"var_upstream\.")
        tokens = vae.img_to_idxBl(images)
        var(torch.zeros(3, dtype=torch.long), vae.quantize.idxBl_to_var_input(tokens))
        var.autoregressive_infer_cfg(1, 0, g_seed=0)
    assert [str(warning.message) for warning in caught] == []


@needs_submodule
def test_submodule_is_the_pinned_revision_untouched() -> None:
    assert finder.source_digest() == finder.PINNED_DIGEST
    assert "78b9539" in load_upstream("submodule").describe()


@needs_submodule
def test_another_revision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "PINNED_DIGEST", "0" * 64)
    finder._load_submodule.cache_clear()
    try:
        with pytest.raises(UpstreamError, match="not the unmodified pinned revision 78b9539"):
            load_upstream("submodule")
    finally:
        monkeypatch.undo()
        load_upstream("submodule")


@needs_submodule
def test_upstreams_modules_are_found_by_their_new_names() -> None:
    up = load_upstream("submodule")
    assert up.VAR.__module__ == "var_upstream.models.var"
    assert sys.modules["var_upstream.models.var"].VAR is up.VAR
    assert finder.import_isolated("trainer").VQVAE is up.VQVAE


def test_missing_submodule_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(finder, "SUBMODULE", tmp_path)
    finder._load_submodule.cache_clear()
    try:
        with pytest.raises(UpstreamError, match="git submodule update --init"):
            load_upstream("submodule")
        assert load_upstream().kind == "stand-in"
        assert "not populated" in load_upstream().describe()
    finally:
        monkeypatch.undo()
        finder._load_submodule.cache_clear()
        if submodule_present():
            load_upstream("submodule")


def test_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFOCUS_UPSTREAM", "main")
    with pytest.raises(UpstreamError, match="takes 'submodule' or 'stand-in'"):
        load_upstream()


@pytest.mark.parametrize(("depth", "gain"), [(12, 1e-3), (16, 1e-3), (20, 1e-3), (24, 1e-4), (30, 1e-5), (36, 5e-6)])
def test_gamma_init_follows_vars_recipe(depth: int, gain: float) -> None:
    assert finder.adaln_gamma_init(depth) == gain
