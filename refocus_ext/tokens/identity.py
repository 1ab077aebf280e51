"""What a token cache was made from and how: only a run that would make the same tokens may use it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refocus_ext.counting import counted
from refocus_ext.errors import UsageError
from refocus_ext.images.checks import SMALL_DATA_SET, header_of
from refocus_ext.images.sources.interface import ImageSource
from refocus_ext.images.views import ViewPlan
from refocus_ext.tokens.trained_tokenizer import Tokenizer

_DECODED = {"decoded": "as viewed"}


@dataclass(frozen=True)
class CacheIdentity:
    """Everything that determines the tokens in a cache, as JSON-serializable values."""

    weights: dict[str, str]  # file -> sha256
    pyramid: dict[str, Any]
    alias: dict[str, Any] | None
    patch_nums: list[int]
    image_size: int
    crop_scale: float
    crops: int
    hflip: bool
    seed: int
    precision: str
    data: dict[str, Any]

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, images: ImageSource, plan: ViewPlan, *, scale: float, precision: str
    ) -> CacheIdentity:
        return cls(
            weights=tokenizer.checksums(),
            pyramid=tokenizer.pyramid.to_dict(),
            alias=tokenizer.alias.geometry.to_dict() if tokenizer.alias is not None else None,
            patch_nums=list(tokenizer.vae.quantize.v_patch_nums),
            image_size=tokenizer.pyramid.image_size,
            crop_scale=scale,
            crops=plan.crops,
            hflip=plan.hflip,
            seed=plan.seed,
            precision=precision,
            data=images.identity() | _decoding(images),
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def differences(self, theirs: Mapping[str, Any]) -> list[str]:
        """The differences of a cache with the identity `theirs`, as ends of the sentence "it was made with ..."."""
        ours, found = self.to_dict(), []
        if weights := _differing(ours["weights"], theirs.get("weights")):
            found.append(f"another tokenizer ({_named(weights)})")
        if ours["data"] != theirs.get("data"):
            found.append(f"another data set ({_data_difference(ours['data'], theirs.get('data'))})")
        if (ours["alias"] is None) != (theirs.get("alias") is None):
            found.append(
                f"{'no' if ours['alias'] else 'an'} alias tokenizer (this run has {'one' if ours['alias'] else 'none'})"
            )
            ours["alias"] = theirs.get("alias")
        for name in (name for name in ours if name not in ("weights", "data")):
            for field, (our, their) in _differing(ours[name], theirs.get(name), name).items():
                found.append(f"{field} = {_show(their)} (this run wants {_show(our)})")
        return found


def _decoding(images: ImageSource) -> dict[str, Any]:
    """Empty if the pixels are those that are stored in the files, as all caches had them before orientation, transparency
    and wide ranges were respected; otherwise a word that makes those caches differ. Reads the headers of a sample."""
    checked = 0 if images.drawn else len(images)  # drawn images have no files
    for index in range(0, checked, max(1, len(images) // SMALL_DATA_SET)):
        with contextlib.suppress(UsageError):
            if not header_of(images, index, shorter=1).plain:
                return _DECODED
    return {}


def _differing(ours: Any, theirs: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields with unequal values, ours and theirs; mappings are compared entry by entry."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return {} if ours == theirs else {name: (ours, theirs)}
    prefix = f"{name}." if name else ""
    keys = [*ours, *(key for key in theirs if key not in ours)]
    pairs = {f"{prefix}{key}": (ours.get(key), theirs.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _named(weights: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(
        f"{name} {their[:12]}, not {our[:12]}" if our and their else f"{'without' if our else 'with'} {name}"
        for name, (our, their) in weights.items()
    )


def _data_difference(ours: Mapping[str, Any], theirs: Any) -> str:
    if isinstance(theirs, dict) and ours == theirs | _DECODED:
        return "the same images, before rotation, transparency and wide ranges of pixels were respected"
    if isinstance(theirs, dict) and ours.get("part") != theirs.get("part"):
        return f"{_part(theirs)}, not {_part(ours)}"
    if not isinstance(theirs, dict) or all(ours[name] == theirs.get(name) for name in ("images", "classes")):
        return "the same number of images, but other files, names or labels"
    return f"{_size(theirs)}, not {ours['images']} in {ours['classes']}"


def _size(data: Mapping[str, Any]) -> str:
    return f"{counted(data.get('images', 0), 'image')} in {counted(data.get('classes', 0), 'class', 'classes')}"


def _part(data: Mapping[str, Any]) -> str:
    """Which of the images, where a share of them may be held out."""
    return (
        f"{data['part']} of {counted(data.get('of', 0), 'image')}"
        if "part" in data
        else f"all {counted(data.get('images', 0), 'image')}"
    )


def _show(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
