"""`bash run.sh verify DIR`: a clean process that imports only upstream makes the same bytes from the files as this project."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patches.sampling import sample_as_upstream
from patches.upstream import PINNED_REVISION, SUBMODULE, load_upstream, submodule_present
from refocus_ext.errors import RunFailed, UsageError
from refocus_ext.export.builder_arguments import build_arguments, builder_obstacle
from refocus_ext.export.clean_process import without_project
from refocus_ext.export.options import VerifyOptions
from refocus_ext.sampling.sampler import Guidance
from refocus_ext.sampling.student import Student, load_student
from refocus_ext.storage.atomic import save_json, sha256
from refocus_ext.storage.reading import is_safetensors, open_weights
from refocus_ext.storage.upstream_weights import is_plain

SCRIPT = Path(__file__).with_name("clean_upstream.py")
RECORD = "verified.json"
SEED = 0
MISSING = (
    "the submodule var_upstream is not populated, and verifying needs upstream; fetch it with "
    "`git submodule update --init` where GitHub can be reached"
)


@dataclass(frozen=True)
class Verdict:
    """Digests (sha256 of float32 bytes) by what was made: "images" and "decoded", upstream's and ours."""

    upstream: Mapping[str, str]
    ours: Mapping[str, str]
    labels: list[int]

    @property
    def equal(self) -> bool:
        return self.upstream == self.ours

    @property
    def digest(self) -> str:
        """The digest of the sampled images."""
        return self.upstream["images"]

    def record(self, student: Student) -> dict[str, Any]:
        """The contents of verified.json."""
        return {
            "upstream": f"github.com/FoundationVision/VAR {PINNED_REVISION}",
            "sha256": dict(self.upstream),
            "sampled": {"labels": self.labels, "seed": SEED} | _guidance(student),
            "files": {path.name: sha256(path) for path in (student.files.var, student.files.vae)},
            "torch": torch.__version__,
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
        }


def main(options: VerifyOptions) -> int:
    """Runs the command; returns its exit code."""
    if not options.folder:
        raise UsageError("verify needs a folder: `bash run.sh verify DIR`, where `bash run.sh export` wrote DIR.")
    require_upstream()
    student = load_student(options.folder, vae=options.vae or None)
    print(student.describe())
    verdict = verify(student)
    print("\n".join(lines(verdict)))
    keep_record(student.files.var.parent, student, verdict)
    return 0 if verdict.equal else 1


def require_upstream() -> None:
    """Raises RunFailed if the submodule is missing, UpstreamError if it is not the pinned revision."""
    if not submodule_present():
        raise RunFailed(MISSING + ".")
    load_upstream("submodule")


def verify(student: Student) -> Verdict:
    """Samples and decodes in a clean process and in this one. The student must be on the CPU.

    Raises:
        UsageError: upstream's builder cannot build the geometry, or upstream cannot load the files.
        RunFailed: the clean process failed.
    """
    _check(student)
    shape = student.geometry
    labels = [0, shape.num_classes - 1]
    tokens = student.tokens(_picture(student.image_size))
    job = {
        "upstream": str(SUBMODULE),
        "var": str(student.files.var.resolve()),
        "vae": str(student.files.vae.resolve()),
        "build": build_arguments(student),
        "labels": labels,
        "sampling": {"B": len(labels), "g_seed": SEED} | _guidance(student),
        "tokens": [idx.tolist() for idx in tokens],
        "threads": torch.get_num_threads(),
    }
    theirs = _in_clean_process(job)
    with torch.no_grad():
        decoded = student.vae.idxBl_to_img(tokens, same_shape=True, last_one=True)
    images = sample_as_upstream(student.var, labels, seed=SEED, guidance=Guidance())
    ours = {name: hashlib.sha256(_bytes(made)).hexdigest() for name, made in (("images", images), ("decoded", decoded))}
    return Verdict(theirs, ours, labels)


def _check(student: Student) -> None:
    if obstacle := builder_obstacle(student):
        raise UsageError(f"{student.files.var} has {obstacle}, which upstream's build_vae_var cannot build.")
    for path in (student.files.var, student.files.vae):
        if is_safetensors(path):
            raise UsageError(f"{path} is a safetensors file, which upstream does not read; verify the .pth beside it.")
        if not (is_plain(path) or "trainer" in open_weights(path)):
            raise UsageError(
                f"{path} is neither a plain state dict nor upstream's training checkpoint, which upstream's code does not load; "
                "`bash run.sh export` writes plain files."
            )


def _guidance(student: Student) -> dict[str, Any]:
    guidance = Guidance().for_codes(student.geometry.vocab_size)
    return {"cfg": guidance.cfg, "top_k": guidance.top_k, "top_p": guidance.top_p}


def _picture(size: int) -> Tensor:
    """A fixed smooth random image (1,3,size,size) in [-1,1]."""
    coarse = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(SEED))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)


def _bytes(image: Tensor) -> bytes:
    return image.float().contiguous().numpy().tobytes()


def _in_clean_process(job: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the results of `clean_upstream.py`."""
    with tempfile.TemporaryDirectory() as folder:
        made = {name: Path(folder, name) for name in ("images", "decoded")}
        file = Path(folder, "job.json")
        file.write_text(json.dumps({**job, **{name: str(path) for name, path in made.items()}}))
        # no GPU, because equality is promised on a CPU only
        run = subprocess.run(
            [sys.executable, str(SCRIPT), str(file)],
            capture_output=True, text=True, cwd=folder, env=without_project() | {"CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["no error output"])[-1].strip().rstrip(".")
            raise RunFailed(f"the clean process with upstream alone failed ({reason}).")
        return {name: sha256(path) for name, path in made.items()}


def lines(verdict: Verdict) -> list[str]:
    """The verdict for the user."""
    revision = PINNED_REVISION[:7]
    if not verdict.equal:
        return [
            f"NOT equal: VAR at {revision} in a separate process makes different bytes from these files than this project",
            *(
                f"  {name:<8} upstream {verdict.upstream[name]}\n           ours     {verdict.ours[name]}"
                for name in verdict.ours
                if verdict.upstream[name] != verdict.ours[name]
            ),
        ]
    return [
        f"verified: VAR at {revision} in a process that imported nothing else loads the files strictly and makes the same bytes",
        f"  2 images, seed {SEED}   sha256 {verdict.digest}",
        f"  decoded tokens     sha256 {verdict.upstream['decoded']}",
    ]


def keep_record(folder: Path, student: Student, verdict: Verdict) -> None:
    """Writes verified.json into a folder; removes an outdated one."""
    file = folder / RECORD
    try:
        if verdict.equal:
            save_json(file, verdict.record(student))
            print(f"  written to {file}; the digest depends on the machine and on torch, equality does not")
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        print(f"note: {file} could not be written ({error.strerror})")
