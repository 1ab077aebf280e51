"""Where images come from: a folder of classes, or the photographs inside scikit-image."""

from __future__ import annotations

from pathlib import Path

from refocus_ext.errors import UsageError
from refocus_ext.images.folder import ImageList, image_folder

# The photographs that ship inside scikit-image's wheel (no download); drawings, charts and icons are left out.
DEMO_PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip


def demo_photographs() -> ImageList:
    """The demo's photographs, one class each.

    Raises:
        UsageError: scikit-image is missing, or holds fewer of them than it used to.
    """
    try:
        import skimage
    except ImportError:
        raise UsageError(
            "the demo photographs come with scikit-image, which is not installed; install it or give --data DIR."
        ) from None
    folder = Path(skimage.__file__).parent / "data"
    paths = [folder / name for name in DEMO_PHOTOGRAPHS if (folder / name).is_file()]
    if len(paths) < len(DEMO_PHOTOGRAPHS) // 2:
        raise UsageError(f"this scikit-image ships only {len(paths)} of the demo photographs; give --data DIR.")
    classes = tuple(path.stem for path in paths)
    return ImageList(tuple(map(str, paths)), tuple(range(len(paths))), classes, square=True)


def find_images(data: str) -> tuple[ImageList, ImageList]:
    """Training and validation images of an ImageFolder, else the demo's, which validates on centre crops of its own
    photographs."""
    if not data:
        photographs = demo_photographs()
        return photographs, photographs
    train, val = image_folder(data, "train"), image_folder(data, "val")
    if missing := sorted(set(val.classes) - set(train.classes)):
        raise UsageError(f"--data {data}: val/ has the class {missing[0]}, which train/ has not; the two must agree.")
    return train, val
