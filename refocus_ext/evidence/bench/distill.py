"""`bash run.sh bench`, stage 2: a training step of distillation beside upstream's own, and what the teacher costs."""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from patches import Upstream
from patches.protocols import VQVAE
from patches.upstream_trainer import upstream_train_step
from refocus_ext.distill import recipe
from refocus_ext.distill.objective import DistillObjective, DistillWeights, TokenEmbedding
from refocus_ext.distill.teacher.cost import teacher_overhead
from refocus_ext.distill.teacher.geometry import TeacherGeometry
from refocus_ext.distill.teacher.shared_weights import Teacher
from refocus_ext.engine.devices import autocast, kind_of
from refocus_ext.engine.optimization import gradient_norm
from refocus_ext.evidence.bench.clock import now
from refocus_ext.optics.pyramid import FocusPyramid

DEPTHS = (12, 16, 20, 24, 30)
CODES, CODE_DIM, STRIDE = 512, 32, 8  # of the alias tokenizer, at its defaults


class _Codes(TokenEmbedding):
    """Alias codes without an alias tokenizer: a table of the same shape."""

    def __init__(self, vae: VQVAE, geometry: TeacherGeometry, device: torch.device) -> None:
        super().__init__(vae, None)
        self.table_VC, self.lengths = torch.randn(CODES, CODE_DIM, device=device), geometry.tokens

    def alias(self, alias_BT: Tensor) -> list[Tensor]:
        return [self.table_VC[idx_Bl] for idx_Bl in alias_BT.split(self.lengths, dim=1)]


def measure(
    upstream: Upstream, pyramid: FocusPyramid, patch_nums: tuple[int, ...], codes: int, depth: int, batch: int, repeats: int,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Seconds and peak memory of one optimizer step of: upstream's trainer, our student alone, student and teacher.

    All three step one VAR with one AdamW (a second copy would not fit a laptop), on the same tokens, in turns; bf16 on
    CUDA, fp32 on a CPU. Without the submodule there is no upstream to measure.
    """
    vae = upstream.build_vae(vocab_size=codes, ch=32, patch_nums=patch_nums, device=device)
    var = upstream.build_var(vae, depth=depth, device=device).train()
    grids = tuple(pyramid.image_size // factor // STRIDE for factor in pyramid.factors[:-1])
    geometry = TeacherGeometry(64 * depth, CODE_DIM, grids, patch_nums, pyramid.states_of(patch_nums))
    teacher = Teacher(geometry).to(device).train()
    embed = _Codes(vae, geometry, device)
    generator = torch.Generator().manual_seed(0)
    idx_BL = torch.randint(codes, (batch, var.L), generator=generator).to(device)
    alias_BT = torch.randint(CODES, (batch, sum(geometry.tokens)), generator=generator).to(device)
    label_B = torch.randint(1000, (batch,), generator=generator).to(device)
    modules = {"var": var, "teacher": teacher}
    optimizers = {
        name: torch.optim.AdamW(
            recipe.weight_decay_groups(module.named_parameters()), lr=1e-6, betas=recipe.BETAS, fused=True
        )
        for name, module in modules.items()
    }

    def step(objective: DistillObjective) -> None:
        taught = objective.teacher is not None
        with autocast(kind_of(device).half(device), device):
            alias_K = embed.alias(alias_BT) if taught else []
            loss, _ = objective(label_B, embed.structure(idx_BL), idx_BL, alias_K)
        loss.backward()
        for name in ("var", "teacher") if taught else ("var",):
            gradient_norm(modules[name], recipe.CLIP)
            optimizers[name].step()
            optimizers[name].zero_grad(set_to_none=True)

    parts: dict[str, Callable[[], None]] = {}
    if upstream.kind == "submodule":
        with contextlib.suppress(ModuleNotFoundError):
            parts["upstream"] = upstream_train_step(
                vae, var, optimizers["var"], label_B, idx_BL, bf16=kind_of(device).half(device) == torch.bfloat16
            )
    alone, both = (DistillObjective(var, member, DistillWeights()) for member in (None, teacher))
    parts |= {"student": lambda: step(alone), "distillation": lambda: step(both)}
    seconds, peak = _turns(parts, repeats, device)
    return {"depth": depth, "batch": batch, "seconds": seconds, "peak_bytes": peak}


def _turns(
    parts: dict[str, Callable[[], None]], repeats: int, device: torch.device
) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds and largest peak of each part; one untimed round, then the parts take turns."""
    runs: dict[str, list[float]] = {name: [] for name in parts}
    peaks = dict.fromkeys(parts, 0)
    for number in range(repeats + 1):
        for name, part in parts.items():
            gc.collect()
            base = kind_of(device).memory_in_use(device)
            began = now(device)
            part()
            if number:
                runs[name].append(now(device) - began)
                peaks[name] = max(peaks[name], kind_of(device).peak_memory(device) - base)
    return {name: statistics.median(values) for name, values in runs.items()}, peaks


def overhead_rows(upstream: Upstream) -> list[dict[str, float]]:
    """The teacher's share of FLOPs and parameters at 256 px, M = 2, for VAR's depths; counted, not timed."""
    rows = []
    for depth in DEPTHS:
        cost = teacher_overhead(upstream, depth)
        rows.append(
            {
                "depth": depth,
                "vanilla_gflop": cost.var_flops / 1e9,
                "flops": cost.flops,
                "var_parameters": cost.var_parameters,
                "parameters": cost.parameters,
            }
        )
    return rows


def table(report: dict[str, Any]) -> list[str]:
    """The ratios, as lines."""
    seconds, peak = report["seconds"], report["peak_bytes"]
    base = "upstream" if "upstream" in seconds else "student"
    lines = [
        f"one step of VAR-d{report['depth']}, {report['batch']} images    seconds   against {base}   memory a step adds"
    ]
    for name, value in seconds.items():
        lines.append(f"{NAMES[name]:<36} {value:>9.3f} {value / seconds[base]:>11.2f}x {peak[name] / 2**30:>15.2f} GiB")
    if base != "upstream":
        lines.append("upstream's trainer was not measured: it needs the submodule, pytz and typed-argument-parser")
    return lines


NAMES = {
    "upstream": "upstream's VARTrainer.train_step",
    "student": "ours, --teacher off",
    "distillation": "ours, student and teacher",
}


def overhead_table(rows: list[dict[str, float]]) -> list[str]:
    """Counted overhead of the teacher."""
    head = "teacher, M=2, 8192 codes, 256 px    vanilla step    added FLOPs   VAR parameters   added"
    return [head] + [
        f"{'d' + str(int(row['depth'])):<33} {row['vanilla_gflop']:>8.0f} GFLOP {100 * row['flops']:>12.1f}% "
        f"{row['var_parameters'] / 1e6:>14.0f}M {100 * row['parameters']:>7.1f}%"
        for row in rows
    ]
