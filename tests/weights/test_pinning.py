from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from isanet_zoo.errors import DownloadError, IntegrityError, OfflineError, UnknownModelError
from isanet_zoo.manifest.lookup import get_weights, load_manifest
from isanet_zoo.weights import tensors
from isanet_zoo.weights.acquire import download
from isanet_zoo.weights.fetch import Fetched
from isanet_zoo.weights.layouts import SSSEG
from isanet_zoo.weights.pinning import pin
from tests.conftest import TinyZoo
from tests.weights.server import Answer, Server, running

OTHER = "0" * 64  # not the hash of any file in these tests


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("ISANET_ZOO_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        yield server


def entry(document: dict[str, Any]) -> dict[str, Any]:
    """The tiny model's entry in a manifest."""
    found: dict[str, Any] = document["models"]["isanet_tiny"]["weights"]["ssseg"]
    return found


def write_entry(zoo: TinyZoo, **facts: object) -> dict[str, Any]:
    """Write facts into the tiny model's entry, and return the whole document."""
    document: dict[str, Any] = json.loads(zoo.manifest.read_text("utf-8"))
    document["label_sets"]["tiny"]["title"] = "Größe S"  # what JSON could escape
    entry(document).update(facts)
    zoo.manifest.write_text(json.dumps(document), "utf-8")
    return document


def file_with(state: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": state}, buffer)
    return buffer.getvalue()


def another_version(zoo: TinyZoo) -> bytes:
    """Another file that fits the network."""
    return file_with(zoo.state | {"decoder.1.bias": zoo.state["decoder.1.bias"] + 1})


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_pin_writes_facts_of_the_served_file_and_nothing_else(
    tiny_zoo: TinyZoo, server: Server
) -> None:
    content = tiny_zoo.published.read_bytes()
    gone, source = server.source(b"", Answer(status=404)), server.source(content)
    expected = write_entry(tiny_zoo, sources=[gone.url, source.url])
    fetched = pin("isanet_tiny", tiny_zoo.manifest, progress=False)
    assert fetched == Fetched(source.url, digest(content), len(content))
    state = {SSSEG.ours(key): tensor for key, tensor in tiny_zoo.state.items()}
    entry(expected).update(
        sha256=digest(content), size=len(content), state_digest=tensors.state_digest(state)
    )
    text = json.dumps(expected, indent=2, ensure_ascii=False) + "\n"
    assert tiny_zoo.manifest.read_bytes() == text.encode()
    assert list(tiny_zoo.manifest.parent.glob("*.json")) == [tiny_zoo.manifest]


@pytest.mark.parametrize("digits", [8, 64])
def test_pin_confirms_a_hash_that_the_manifest_has(
    tiny_zoo: TinyZoo, server: Server, digits: int
) -> None:
    content = tiny_zoo.published.read_bytes()
    known = {"sha256" if digits == 64 else "sha256_prefix": digest(content)[:digits]}
    write_entry(tiny_zoo, sources=[server.source(content).url], **known)
    pin("isanet_tiny", tiny_zoo.manifest, progress=False)
    assert get_weights("isanet_tiny").sha256 == digest(content)


@pytest.mark.parametrize(
    "known", [{"sha256": OTHER}, {"sha256_prefix": OTHER[:8]}, {"state_digest": OTHER}, {"size": 5}]
)
def test_pin_that_contradicts_the_manifest_changes_nothing(
    tiny_zoo: TinyZoo, server: Server, known: dict[str, str | int]
) -> None:
    content = tiny_zoo.published.read_bytes()
    write_entry(tiny_zoo, sources=[server.source(content).url], **known)
    before = tiny_zoo.manifest.read_bytes()
    (value,) = known.values()
    with pytest.raises(IntegrityError, match=f" {value} .*find out why before you change"):
        pin("isanet_tiny", tiny_zoo.manifest, progress=False)
    assert tiny_zoo.manifest.read_bytes() == before


def test_pin_uses_the_publisher_and_leaves_the_cache_unchanged(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = server.source(another_version(tiny_zoo))
    mirror = server.source(tiny_zoo.published.read_bytes())
    monkeypatch.setenv("ISANET_ZOO_MIRROR", f"{mirror.mirror},{tiny_zoo.mirror}")
    cache = tiny_zoo.weights.path().parent
    cache.mkdir(parents=True)
    by_hand = cache / tiny_zoo.weights.filename
    by_hand.write_bytes(tiny_zoo.published.read_bytes())
    write_entry(tiny_zoo, sources=[source.url])
    fetched = pin("isanet_tiny", tiny_zoo.manifest, progress=False)
    assert fetched == Fetched(source.url, digest(source.content), len(source.content))
    assert mirror.seen == []
    assert list(cache.iterdir()) == [by_hand]


@pytest.mark.parametrize("part", ["decoder.1.bias", "auxiliary_decoder"])
def test_pin_refuses_a_file_that_lacks_a_tensor(
    tiny_zoo: TinyZoo, server: Server, part: str
) -> None:
    partial = {key: value for key, value in tiny_zoo.state.items() if not key.startswith(part)}
    write_entry(tiny_zoo, sources=[server.source(file_with(partial)).url])
    before = tiny_zoo.manifest.read_bytes()
    with pytest.raises(DownloadError, match=f"missing: {part}"):
        pin("isanet_tiny", tiny_zoo.manifest, progress=False)
    assert tiny_zoo.manifest.read_bytes() == before


def test_pin_offline_or_of_an_unknown_name_changes_nothing(tiny_zoo: TinyZoo) -> None:
    before = tiny_zoo.manifest.read_bytes()
    with pytest.raises(OfflineError):
        pin("isanet_tiny", tiny_zoo.manifest, progress=False)
    with pytest.raises(
        UnknownModelError, match="no model is called 'isanet_huge'; did you mean isanet_tiny"
    ):
        pin("isanet_huge", tiny_zoo.manifest, progress=False)
    assert tiny_zoo.manifest.read_bytes() == before


def test_pin_reads_and_writes_the_given_manifest(
    tiny_zoo: TinyZoo, server: Server, tmp_path: Path
) -> None:
    before = tiny_zoo.manifest.read_bytes()
    source = server.source(tiny_zoo.published.read_bytes())
    write_entry(tiny_zoo, sources=[source.url])
    copy = tmp_path / "copy.json"
    tiny_zoo.manifest.rename(copy)
    tiny_zoo.manifest.write_bytes(before)
    pin("isanet_tiny", copy, progress=False)
    assert entry(json.loads(copy.read_text("utf-8")))["sha256"] == digest(source.content)
    assert tiny_zoo.manifest.read_bytes() == before


def test_pin_reads_a_manifest_again_that_was_read_before(tiny_zoo: TinyZoo, server: Server) -> None:
    source = server.source(tiny_zoo.published.read_bytes())
    load_manifest(tiny_zoo.manifest)
    write_entry(tiny_zoo, sources=[source.url])
    pin("isanet_tiny", tiny_zoo.manifest, progress=False)
    assert load_manifest(tiny_zoo.manifest)["isanet_tiny"].sha256 == digest(source.content)


def test_download_after_pin_accepts_the_pinned_file_only(tiny_zoo: TinyZoo, server: Server) -> None:
    source = server.source(tiny_zoo.published.read_bytes())
    write_entry(tiny_zoo, sources=[source.url])
    assert get_weights("isanet_tiny").trust == "unverified"
    pin("isanet_tiny", tiny_zoo.manifest, progress=False)
    assert get_weights("isanet_tiny").trust == "verified"
    assert download("isanet_tiny", progress=False).is_file()
    source.content = another_version(tiny_zoo)
    with pytest.raises(DownloadError) as refused:
        download("isanet_tiny", force=True, progress=False)
    ((url, error),) = refused.value.tried
    assert (url, type(error)) == (source.url, IntegrityError)
