"""The Hugging Face Hub: `export --push` uploads an export, and `bash run.sh pull` downloads it."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Sequence
from pathlib import Path

from refocus_ext.errors import RunFailed, UsageError, named
from refocus_ext.export.folder import CARD, WEIGHTS, check_folder, is_ours
from refocus_ext.export.options import PullOptions
from refocus_ext.sampling.student_files import GEOMETRY_FILE
from refocus_ext.storage.atomic import copy_file, sha256


def address(repository: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}"


def shown_size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB" if size >= 1000 else f"{size} bytes"


def check_target(repository: str, *, dry_run: bool = False) -> None:
    """Raises UsageError unless an upload is possible, as far as this can be checked without the network."""
    from huggingface_hub import constants, get_token

    _check_name(repository)
    if dry_run:
        return
    if constants.HF_HUB_OFFLINE:
        raise UsageError(f"{repository} needs the network, but HF_HUB_OFFLINE is set; unset it, or omit --push.")
    if not get_token():
        raise UsageError(f"{repository} needs a token; set HF_TOKEN, or log in with `hf auth login`.")


def _check_name(repository: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
        valid = repository.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UsageError(f"{repository or 'nothing'} is not a repository of the Hub; give OWNER/NAME.")


def push(repository: str, folder: Path, names: Sequence[str], *, private: bool = False) -> None:
    """Uploads those files of a folder in one commit; the repository is created if it does not exist.

    Raises:
        RunFailed: the Hub refuses or cannot be reached; the folder is kept, and the command can be rerun.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    total = sum((folder / name).stat().st_size for name in names)
    print(f"uploading {len(names)} files, {shown_size(total)}, to {address(repository)} ...", flush=True)
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(names),
            commit_message=f"{names[0]} from ReFocus-VAR",
        )
    except Exception as error:  # errors of httpx, the Hub and the system; all are treated alike
        raise RunFailed(
            f"the upload to {repository} failed ({_reason(error)}); {folder} is complete; rerun the command to push it again."
        ) from error
    print(f"uploaded; `bash run.sh pull {repository} --to DIR` downloads it")


# ------------------------------------------------------------------------------------------------ pull


def main(options: PullOptions) -> int:
    """Runs `pull`; returns its exit code."""
    if not options.repository or not options.to:
        raise UsageError("pull needs a repository and a folder: `bash run.sh pull OWNER/NAME --to DIR`.")
    _check_name(options.repository)
    folder = Path(options.to)
    with named("--to"):
        check_folder(folder, of_export=False)
    snapshot = download(options.repository, options.revision or None, patterns(options.depth))
    names = sorted(path.name for path in snapshot.iterdir() if is_ours(path.name) and path.is_file())
    if options.depth:  # the cache may hold more than requested
        names = [name for name in names if not name.startswith("var_") or name.startswith(f"var_d{options.depth}.")]
    if not any(name.startswith("var_d") for name in names):
        raise RunFailed(f"{options.repository} has no VAR in upstream's format (var_dN.pth); pull another repository.")
    with named("--to"):
        for path in left_over(snapshot, folder, names):
            path.unlink()
        copy(snapshot, folder, names)
    print(f"{folder}:\n" + "\n".join(f"  {name:<34}{shown_size((folder / name).stat().st_size)}" for name in names))
    check_sums(folder)
    return 0


def patterns(depth: int | None) -> list[str]:
    """The files to download from a repository."""
    return [f"var_d{depth or '*'}.pth", f"var_d{depth or '*'}.safetensors", "vae_ch*", "*.json", "README.md"]


def download(repository: str, revision: str | None, wanted: Sequence[str]) -> Path:
    """The folder in the Hub's cache that holds the files; with HF_HUB_OFFLINE the network is not used.

    Raises:
        UsageError: the repository or revision does not exist.
        RunFailed: it is not in the cache and the Hub cannot be reached.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    at = f" at {revision}" if revision else ""
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(wanted)))
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise RunFailed(
                f"{repository}{at} is not in the Hub's cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids downloading it; "
                "unset it, or pull on a machine with a network."
            ) from error
        raise RunFailed(
            f"{repository}{at} is not in the cache and the Hub cannot be reached ({_reason(error)})."
        ) from error
    except RepositoryNotFoundError:
        raise UsageError(
            f"{address(repository)} does not exist, or is private and HF_TOKEN gives no access; check the name and the token."
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"{address(repository)} has no revision {revision}; give a branch, tag or commit.") from None
    except Exception as error:
        raise RunFailed(f"{repository}{at} could not be downloaded ({_reason(error)}); rerun the command.") from error


def left_over(snapshot: Path, folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of an earlier download that belong to none of the networks in `folder` once `names` are copied to it.

    Raises:
        UsageError: networks of another student would stay there, with a VAE, geometry or class names that are not theirs.
    """
    others = [path for path in sorted(folder.glob("*")) if is_ours(path.name) and path.name not in names]
    new = [name for name in names if not _same_file(snapshot / name, folder / name)]
    staying = [path.name for path in others if path.name.startswith("var_d")]
    if not staying:
        return others if any(WEIGHTS.fullmatch(name) for name in new) else []
    if foreign := [name for name in new if not name.startswith("var_d") and name != CARD]:
        raise UsageError(
            f"{folder} holds {staying[0]} of another student, to which this repository's {foreign[0]} does not belong; choose "
            "another folder."
        )
    return []


def _same_file(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def copy(snapshot: Path, folder: Path, names: Sequence[str]) -> None:
    """Copies files out of the cache, whose links may be pruned."""
    for name in names:
        copy_file(snapshot / name, folder / name)


def check_sums(folder: Path) -> None:
    """Compares the files with the checksums in an export's geometry.json, if there is one.

    Raises:
        RunFailed: a file does not match.
    """
    file = folder / GEOMETRY_FILE
    try:
        sums = json.loads(file.read_text())["weights"] if file.is_file() else {}
    except (ValueError, KeyError, TypeError):
        sums = {}
    there = [name for name in sums if (folder / name).is_file()]
    for name in there:
        if sha256(folder / name) != sums[name]:
            raise RunFailed(f"{folder / name} is not the file that was exported (its sha256 differs); pull it again.")
    if there:
        print(f"the sha256 of all {len(there)} weights files matches {GEOMETRY_FILE}")
    print(f"`bash run.sh verify {folder}` checks that they are vanilla VAR")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:") if lines else type(error).__name__
