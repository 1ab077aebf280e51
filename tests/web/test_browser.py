"""The page in a real browser: Debian's Chromium without a window, driven by playwright, on a server of its own."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pages import FIGURES_OF_A_SAMPLE, NAMES, free_port, write_pictures, write_students
from PIL import Image

from refocus_ext.images.picture import image_bytes
from refocus_ext.sampling.sampler import for_pictures, sample_images
from refocus_ext.sampling.student import load_student

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SECONDS = 60  # that anything on the page may take on a busy machine
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"the page's browser tests need {', '.join(MISSING)}, which this machine lacks"
)


class Served(NamedTuple):
    address: str
    folder: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`bash run.sh web` in a folder with two students, as a process."""
    folder = tmp_path_factory.mktemp("web")
    write_students(folder)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "refocus_ext", "web", "--port", str(port), "--device", "cpu", "--students", "runs"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "the page: http" in line:
            break
    assert said and f"http://127.0.0.1:{port}" in said[-1], "".join(said)
    yield Served(f"http://127.0.0.1:{port}", folder)
    process.terminate()
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)


class Client:
    """One user's page."""

    def __init__(self, browser: Any, served: Served) -> None:
        self.page = browser.new_context().new_page()
        self.page.set_default_timeout(1000 * SECONDS)
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(served.address)
        self.wait("#about", "parameters")

    def wait(self, place: str, text: str) -> None:
        self.page.wait_for_selector(f"{place} >> text={text}")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def choose(self, menu: str, value: str) -> None:
        box = self.page.locator(f"{menu} input")
        box.click()
        box.fill(value)
        self.page.get_by_role("option", name=value).click()

    def fill(self, field: str, value: str) -> None:
        box = self.page.locator(f"{field} input, {field} textarea").first
        box.fill(value)
        box.press("Tab")

    def upload(self, field: str, path: Path) -> None:
        self.page.set_input_files(f"{field} input[type=file]", str(path))

    def tap(self, place: str, x: float, y: float) -> None:
        """At fractions of the width and height of a picture, when it is there."""
        self.page.wait_for_function(
            "place => { const i = document.querySelector(place); return i && i.complete && i.naturalWidth > 0 }",
            arg=f"{place} img",
        )
        picture = self.page.locator(f"{place} img")
        size = picture.bounding_box()
        picture.click(position={"x": x * size["width"], "y": y * size["height"]})

    def pictures(self, place: str) -> list[np.ndarray]:
        """The pictures shown in a place, (H,W,3) uint8."""
        urls = self.page.eval_on_selector_all(f"{place} .figures img", "images => images.map(image => image.src)")
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]

    def sample(self, label: str, seed: int) -> list[np.ndarray]:
        self.choose("#sample-class", label)
        self.fill("#sample-seed", str(seed))
        self.page.click("#sample-draw")
        self.wait("#sample-status", f"--seed {seed} ")
        return self.pictures("#sample-picture")


@pytest.fixture
def client(browser: Any, served: Served) -> Iterator[Client]:
    """Whatever it did, it asked this machine alone."""
    client = Client(browser, served)
    yield client
    client.page.context.close()
    others = [url for url in client.asked if not url.startswith((served.address + "/", "data:", "blob:"))]
    assert client.asked and not others


def drawn(served: Served, name: str, label: int, seed: int) -> np.ndarray:
    """What the student draws without a page."""
    student = load_student(served.folder / "runs" / name)
    guidance = for_pictures(demo=name == NAMES[1])
    return image_bytes(sample_images(student, [label], seed=seed, guidance=guidance))[0]


def test_choose_and_sample(client: Client, served: Served) -> None:
    first = client.sample("toaster", 5)
    assert len(first) == FIGURES_OF_A_SAMPLE and np.array_equal(first[0], drawn(served, NAMES[0], 2, 5))
    assert np.array_equal(first[4], first[0]), "the last prefix is the image"
    client.choose("#student", NAMES[1])
    client.wait("#about", NAMES[1])
    assert np.array_equal(client.sample("Golden Retriever", 6)[0], drawn(served, NAMES[1], 1, 6))
    client.fill("#sample-seed", "-1")
    client.page.click("#sample-draw")
    client.wait("#sample-status", "seed -1 is not a whole number from 0 on")


def test_a_picture_of_ones_own_and_a_broken_one(client: Client, tmp_path: Path) -> None:
    picture, broken = write_pictures(tmp_path)
    client.tab("Your picture")
    client.upload("#picture-file", broken)
    client.wait("#picture-status", "broken.jpg is not an image that can be opened; give another one.")
    assert client.page.query_selector("#picture-status .failed") and not client.page.query_selector(".toast-body")
    client.page.click("#picture-file button[aria-label*=lear], #picture-file button[aria-label*=emove]")
    client.upload("#picture-file", picture)
    client.wait("#picture-status", "dB focus")
    assert len(client.pictures("#picture-result")) == 2 * 5 + 2 * 4, "decoded and token maps, focus and sharp"
    client.page.wait_for_selector("#picture-pyramid img")


def test_a_box_is_repainted(client: Client, tmp_path: Path) -> None:
    picture, _ = write_pictures(tmp_path)
    client.tab("Edit")
    client.upload("#edit-file", picture)
    client.wait("#edit-status", "The central square at the student's 64 pixels.")
    client.tap("#edit-view", 0.1, 0.9)
    client.wait("#edit-status", "Now the opposite corner.")
    client.tap("#edit-view", 0.6, 0.6)
    client.wait("#edit-status", "The box is 0,32,48,64.")
    assert client.page.input_value("#edit-box input, #edit-box textarea") == "0,32,48,64"
    client.choose("#edit-class", "tench")
    client.page.click("#edit-paint")
    client.wait("#edit-status", "The kept tokens are unchanged")
    stays, *others = client.pictures("#edit-result")
    assert len(others) == 3
    assert len(np.unique(stays[33:63, 1:47])) == 1 and len(np.unique(stays[:32])) > 50, "the box alone is left out"
    client.fill("#edit-box", "0,0,64,64")
    client.page.click("#edit-paint")
    client.wait("#edit-status", "covers the whole image, which leaves nothing to keep")


def test_two_students_side_by_side(client: Client, served: Served) -> None:
    client.tab("Compare")
    client.fill("#compare-classes", "toaster")
    client.fill("#compare-seed", "2")
    client.page.click("#compare-draw")
    client.wait("#compare-status", "--compare")
    shown = client.pictures("#compare-picture")
    assert len(shown) == 8
    for row, name in enumerate(NAMES):
        student = load_student(served.folder / "runs" / name)
        expected = image_bytes(sample_images(student, [2] * 4, seed=2))
        assert all(np.array_equal(shown[4 * row + i], expected[i]) for i in range(4))


def test_export(client: Client, served: Served) -> None:
    client.tab("Export")
    client.page.click("#export-prove input")  # the proof has tests of its own
    client.page.click("#export-start")
    client.wait("#export-status", "is written")
    exported = load_student(served.folder / "exports" / NAMES[0])
    assert exported.geometry == load_student(served.folder / "runs" / NAMES[0]).geometry
    assert "var_d2.pth" in client.page.input_value("#export-files textarea")


def test_two_clients_at_once(client: Client, browser: Any, served: Served) -> None:
    other = Client(browser, served)
    for one, seed in ((client, 11), (other, 12)):
        one.choose("#sample-class", "tench")
        one.fill("#sample-seed", str(seed))
    client.page.click("#sample-draw")
    other.page.click("#sample-draw")
    for one, seed in ((client, 11), (other, 12)):
        one.wait("#sample-status", f"--seed {seed} ")
        assert np.array_equal(one.pictures("#sample-picture")[0], drawn(served, NAMES[0], 0, seed))
    other.page.context.close()
