"""Run by path in a separate process (`python clean_upstream.py JOB.json`): makes the bytes with upstream's files only.

It imports nothing of this project. It puts upstream's folder on sys.path, builds with upstream's builder, loads the files
strictly with weights_only=True, samples, decodes, and fails if anything else of the project was imported.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

if __name__ == "__main__":  # Python 3.10 knows no PYTHONSAFEPATH, and the files beside this one are the project's
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

import torch


def weights(path: str, nested: str) -> dict[str, torch.Tensor]:
    """A plain state dict, or the one nested in upstream's training checkpoint."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state["trainer"][nested] if "trainer" in state else state


def main(file: str) -> None:
    """Writes the raw float32 bytes of the sampled images and of the decoded tokens to the paths that the job names."""
    job = json.loads(Path(file).read_text())
    warnings.filterwarnings("ignore", category=FutureWarning)  # upstream's torch.cuda.amp.autocast
    torch.set_num_threads(job["threads"])
    sys.path.insert(0, job["upstream"])
    from models import build_vae_var  # type: ignore[attr-defined,unused-ignore]

    vae, var = build_vae_var(device="cpu", **job["build"])
    vae.load_state_dict(weights(job["vae"], "vae_local"), strict=True)
    var.load_state_dict(weights(job["var"], "var_wo_ddp"), strict=True)
    vae.eval(), var.eval()
    images = var.autoregressive_infer_cfg(label_B=torch.tensor(job["labels"]), **job["sampling"])
    tokens = [torch.tensor(idx) for idx in job["tokens"]]
    with torch.no_grad():
        decoded = vae.idxBl_to_img(tokens, same_shape=True, last_one=True)
    for name, image in (("images", images), ("decoded", decoded)):
        Path(job[name]).write_bytes(image.contiguous().numpy().tobytes())
    if foreign := [name for name in sys.modules if name.split(".")[0] in ("refocus_ext", "patches")]:
        raise SystemExit(f"this process was not clean: it imported {', '.join(foreign)}")
    root = Path(job["upstream"]).resolve()
    if strays := [n for n in ("dist", "models") if root not in Path(sys.modules[n].__file__ or "").resolve().parents]:
        raise SystemExit(f"{', '.join(strays)} did not come from {root}")


if __name__ == "__main__":
    main(sys.argv[1])
