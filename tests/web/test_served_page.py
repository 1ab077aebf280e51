"""The page as it is served: what it lets nobody read, what it leaves out, and what it says where work fails."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import NAMES, free_port, write_pictures, write_students

from refocus_ext.errors import UsageError
from refocus_ext.web.models import Models
from refocus_ext.web.work import Worker

gradio = pytest.importorskip("gradio", reason="gradio is not installed: `bash run.sh web` adds it")


def models(folder: Path) -> Models:
    return Models(write_students(folder), {}, torch.device("cpu"))


class Client:
    """Speaks to the page as a browser does, without one."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.config = json.loads(self.get("/config")[1])

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.address + path, headers=headers), timeout=60
            ) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def component(self, elem_id: str) -> int:
        return next(c["id"] for c in self.config["components"] if c["props"].get("elem_id") == elem_id)

    def click(self, elem_id: str, *values: Any) -> str:
        """All that the page answers to a click on a button, with these values of the inputs."""
        target = [self.component(elem_id), "click"]
        event = next(d["id"] for d in self.config["dependencies"] if target in [list(t) for t in d["targets"]])
        body = {"data": list(values), "fn_index": event, "session_hash": "test"}
        request = urllib.request.Request(
            self.address + "/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).close()
        with urllib.request.urlopen(self.address + "/gradio_api/queue/data?session_hash=test", timeout=60) as stream:
            return stream.read().decode()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    from refocus_ext.web.page import build
    from refocus_ext.web.serving import served

    folder = tmp_path_factory.mktemp("page")
    with served(lambda: build(models(folder), Worker(), folder / "exports"), free_port()) as (address, public):
        assert public is None and address.startswith("http://127.0.0.1:")
        yield Client(address)


def test_no_file_of_the_machine_can_be_read(client: Client, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"what nobody may read")
    for path in (secret, Path("/etc/passwd"), Path(__file__)):
        for way in (f"/gradio_api/file={path}", f"/file={path}", f"/gradio_api/file=../../..{path}"):
            status, body = client.get(way)
            assert status in (403, 404) and b"what nobody may read" not in body, way


def test_a_file_that_was_not_uploaded_is_no_picture(client: Client, tmp_path: Path) -> None:
    """A client can claim that any path is its upload."""
    picture, _ = write_pictures(tmp_path)
    forged = {"path": str(picture), "meta": {"_type": "gradio.FileData"}}
    answer = client.click("picture-take", NAMES[0], forged, "disk", 1)
    assert '"success":false' in answer and "PSNR" not in answer


def test_a_site_cannot_give_itself_this_machines_address(client: Client) -> None:
    """A browser sends the name in its address bar as Host, even if that name now leads to 127.0.0.1."""
    assert client.get("/config", Host="evil.example")[0] == 400
    port = client.address.rpartition(":")[2]
    assert client.get("/config", Host=f"localhost:{port}")[0] == 200


def test_a_value_outside_the_menu_is_refused(client: Client) -> None:
    answer = client.click("sample-draw", "../../etc", 0, 0, 4)
    assert '"success":false' in answer and "Drawn in" not in answer
    assert "seed -3 is not a whole number from 0 on" in client.click("compare-draw", *NAMES, "", 1, -3, 4)


def test_it_says_how_far_it_is(client: Client) -> None:
    answer = client.click("compare-draw", *NAMES, "tench", 2, 0, 4)
    places = [answer.index(words) for words in ("distill-a draws ...", "distill-b draws ...", "The same by command")]
    assert places == sorted(places)


def test_the_page_is_told_to_no_one(client: Client) -> None:
    config = client.config
    assert not config["analytics_enabled"]
    assert config["footer_links"] == [] and not config.get("run_history")
    assert all(dependency["api_visibility"] == "private" for dependency in config["dependencies"])
    _, html = client.get("/")
    loaded = re.findall(rb'<(?:script|link)[^>]+(?:src|href)="(https?:[^"]+)"', html)
    assert not [url for url in loaded if b"127.0.0.1" not in url]


def test_a_shared_page_does_not_export(tmp_path: Path) -> None:
    from refocus_ext.web.page import build

    def ids(page: Any) -> set[str]:
        return {block.elem_id for block in page.blocks.values() if block.elem_id}

    found = models(tmp_path)
    assert "export-start" in ids(build(found, Worker(), tmp_path)) and "export-start" not in ids(
        build(found, Worker(), None)
    )


def test_with_a_tokenizer_alone_there_are_pictures_alone(tmp_path: Path) -> None:
    from refocus_ext.web.page import build

    page = build(Models({}, {"vae.pth": tmp_path / "vae.pth"}, torch.device("cpu")), Worker(), tmp_path)
    ids = {block.elem_id for block in page.blocks.values() if block.elem_id}
    assert "picture-take" in ids and "sample-draw" not in ids and "student" not in ids


def test_what_fails_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from refocus_ext.web.desk import Desk

    desk = Desk(models(tmp_path), Worker())

    def fails(error: Exception) -> Iterator[Any]:
        def work(tell: Any) -> None:
            raise error

        return desk.run(work, "status")

    for error, sentence in (
        (UsageError("--edit: the <b> is bad; give another one."), ">the &lt;b&gt; is bad; give another one."),
        (KeyError("x"), "the terminal in which the page was started says where (KeyError)."),
    ):
        told = fails(error)
        (shown,) = (values["status"] for values in told)
        assert shown.startswith('<span class="failed" role="alert">') and shown.endswith(f"{sentence}</span>")
    assert capsys.readouterr().err.count("Traceback") == 1, "of the fault of the program alone"


def test_gradios_own_settings_do_not_open_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    from refocus_ext.web.serving import prepare_environment

    monkeypatch.setattr(os, "environ", {"GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/", "NO_PROXY": "intranet"})
    prepare_environment(str(tmp_path))
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
    assert not {"GRADIO_SHARE", "GRADIO_ALLOWED_PATHS"} & set(os.environ)
    assert os.environ["NO_PROXY"] == "intranet,127.0.0.1,localhost"
