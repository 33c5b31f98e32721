"""Images from URLs: equal to files, bounded, with errors that name the URL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.reading import read_image
from isanet_zoo.inference import remote
from isanet_zoo.inference.remote import read_any
from isanet_zoo.weights.http import Patience
from tests import reference
from tests.weights.server import HTML, Answer, Server, closed_url, running

HOME = (reference.DATA / "images" / "home.jpg").read_bytes()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISANET_ZOO_OFFLINE")
    monkeypatch.setattr(remote, "PATIENCE", Patience(tries=2, backoff=0.01, window=0.5))


def test_image_of_a_url_is_that_of_the_file(server: Server) -> None:
    source = server.source(HOME, Answer(cut=9000), name="home.jpg")
    loaded = read_any(source.url)
    assert torch.equal(loaded.pixels, read_image(HOME).pixels)
    assert loaded.path is None
    assert [seen.range for seen in source.seen] == [None, "bytes=9000-"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(status=404), "answered 404"),
        (Answer(body=HTML), "returned an HTML page instead of an image"),
        (Answer(body=b"text"), "home.jpg is not an image file"),
        (Answer(endless=True), "bytes or more; at most 300000 are expected"),
        (Answer(drip=0.2), "fewer than 1024 bytes per second"),
        (Answer(body=HOME[:5000]), "home.jpg is damaged"),
    ],
    ids=["missing", "page", "text", "endless", "slow", "truncated"],
)
def test_bad_answer_is_an_input_error(
    server: Server, answer: Answer, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "LARGEST", 300_000)
    source = server.source(HOME, then=answer, name="home.jpg")
    with pytest.raises(InputError, match=message) as caught:
        read_any(source.url.replace("//", "//user:secret@"))
    assert source.url in str(caught.value)
    assert "secret" not in str(caught.value)


def test_offline_mode_and_closed_servers_are_input_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    url = closed_url()
    with pytest.raises(InputError, match="the connection was refused"):
        read_any(url)
    monkeypatch.setenv("ISANET_ZOO_OFFLINE", "1")
    with pytest.raises(InputError, match="skipped \\(offline mode\\)"):
        read_any(url)


def test_other_images_are_read_as_before() -> None:
    assert torch.equal(read_any(HOME).pixels, read_image(HOME).pixels)
    with pytest.raises(InputError, match="is a URL; download the image first"):
        read_any("s3://bucket/a.png")
