"""Mirrors of converted weights: upload, and downloads that prefer and check them."""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from isanet_zoo import create_model
from isanet_zoo.cache import CacheEntry
from isanet_zoo.commands.main import main
from isanet_zoo.errors import DownloadError, InputError, IntegrityError, UploadError
from isanet_zoo.hub.mirror import mirror
from isanet_zoo.manifest import lookup
from isanet_zoo.manifest.lookup import get_weights, load_manifest
from isanet_zoo.manifest.weights import HubFile
from isanet_zoo.weights.acquire import download
from isanet_zoo.weights.integrity import verify
from isanet_zoo.weights.pinning import pin
from isanet_zoo.weights.tensors import state_digest
from tests.conftest import TinyZoo
from tests.hub import stand_in
from tests.hub.stand_in import OWNER, Hub
from tests.weights.server import Server, running

REPO = "someone/mirror"

# How huggingface_hub itself sends a large file over plain HTTP.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAMES = ["isanet_tiny", "isanet_tiny.second", "isanet_tiny.third"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with stand_in.running() as hub:
        stand_in.connect(hub, monkeypatch, tmp_path, OWNER)
        yield hub


@pytest.fixture
def publisher() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def pinned(hub: Hub, publisher: Server, tiny_zoo: TinyZoo) -> TinyZoo:
    """Return a zoo of three weights of one model, pinned and cached."""
    document = json.loads(tiny_zoo.manifest.read_text("utf-8"))
    tags = document["models"]["isanet_tiny"]["weights"]
    for number, tag in enumerate(["ssseg", "second", "third"]):
        state = {
            key: tensor + number if key.endswith("bias") else tensor
            for key, tensor in tiny_zoo.state.items()
        }
        buffer = io.BytesIO()
        torch.save({"model": state}, buffer)
        source = publisher.source(buffer.getvalue(), name=f"{tag}.pth")
        tags[tag] = copy.deepcopy(tags["ssseg"]) | {
            "filename": f"{tag}.pth",
            "sources": [source.url],
        }
    tiny_zoo.manifest.write_text(json.dumps(document), "utf-8")
    for name in NAMES:
        pin(name, tiny_zoo.manifest, progress=False)
        download(name, progress=False)
    assert hub.seen == []
    return tiny_zoo


def forget(name: str) -> None:
    """Delete the cached file of some weights."""
    entry = CacheEntry.of(name)
    entry.model.unlink()
    entry.side.unlink()


def requests(publisher: Server) -> int:
    return sum(len(source.seen) for source in publisher.sources.values())


def test_mirrored_weights_are_downloaded_from_the_mirror(
    hub: Hub, publisher: Server, pinned: TinyZoo
) -> None:
    before = {name: create_model(name, pretrained=True).state_dict() for name in NAMES}
    hashes = {name: hashlib.sha256(download(name).read_bytes()).hexdigest() for name in NAMES}
    files = mirror(NAMES, REPO, pinned.manifest, progress=False)
    commit, held = hub.repositories[REPO].commits[-1]
    assert {f"{name}/model.safetensors" for name in NAMES} | {"SHA256SUMS", "README.md"} == (
        held.keys() - {".gitattributes"}
    )
    for name, file in zip(NAMES, files, strict=True):
        assert file == HubFile(
            REPO, commit, f"{name}/model.safetensors", hashes[name], len(held[file.path])
        )
        assert hashlib.sha256(held[file.path]).hexdigest() == hashes[name]
        assert get_weights(name).hub == file
    sums = "".join(f"{hashes[name]}  {name}/model.safetensors\n" for name in NAMES)
    assert sorted(held["SHA256SUMS"].decode().splitlines()) == sorted(sums.splitlines())
    card = held["README.md"].decode("utf-8")
    assert all(get_weights(name).sources[0] in card for name in NAMES)

    before_loading, seen = requests(publisher), len(hub.seen)
    for name in NAMES:
        forget(name)
        model = create_model(name, pretrained=True, progress=False)
        assert state_digest(model.state_dict()) == state_digest(before[name])
        record = CacheEntry.of(name).record()
        assert record is not None
        assert (record.source, record.source_sha256) == (get_weights(name).hub.url, hashes[name])  # type: ignore[union-attr]
        assert model.load_report.trust == "verified"
        assert verify(get_weights(name)) is None
        assert download(name) == CacheEntry.of(name).model
    assert requests(publisher) == before_loading
    assert len(hub.seen) > seen


def test_wrong_byte_on_the_mirror_is_refused_for_the_publishers_file(
    hub: Hub, publisher: Server, pinned: TinyZoo
) -> None:
    mirror(NAMES[:1], REPO, pinned.manifest, progress=False)
    expected = download(NAMES[0]).read_bytes()
    forget(NAMES[0])
    _, held = hub.repositories[REPO].commits[-1]
    content = bytearray(held["isanet_tiny/model.safetensors"])
    content[-2] ^= 1
    held["isanet_tiny/model.safetensors"] = bytes(content)
    earlier = requests(publisher)
    assert download(NAMES[0], progress=False).read_bytes() == expected
    assert requests(publisher) == earlier + 1
    for source in publisher.sources.values():
        source.content = b"<html>gone</html>"
    forget(NAMES[0])
    with pytest.raises(DownloadError) as refused:
        download(NAMES[0], progress=False)
    (url, error), _ = refused.value.tried
    assert url.endswith("/isanet_tiny/model.safetensors")
    assert isinstance(error, IntegrityError)
    assert "isanet_tiny/model.safetensors has sha256" in str(error)
    assert not CacheEntry.of(NAMES[0]).model.exists()


def test_mirror_that_is_down_is_skipped(hub: Hub, publisher: Server, pinned: TinyZoo) -> None:
    mirror(NAMES[:1], REPO, pinned.manifest, progress=False)
    forget(NAMES[0])
    hub.broken = 404
    assert download(NAMES[0], progress=False).is_file()
    record = CacheEntry.of(NAMES[0]).record()
    assert record is not None
    assert record.source.startswith(f"http://127.0.0.1:{publisher.server_port}/")


def test_mirroring_more_weights_keeps_earlier_files(hub: Hub, pinned: TinyZoo) -> None:
    (first,) = mirror(NAMES[:1], REPO, pinned.manifest, progress=False)
    mirror(NAMES[1:2], REPO, pinned.manifest, progress=False)
    commit, held = hub.repositories[REPO].commits[-1]
    assert get_weights(NAMES[0]).hub == first
    second = get_weights(NAMES[1]).hub
    assert second is not None
    assert second.revision == commit != first.revision
    assert held["SHA256SUMS"].decode().count("\n") == 2
    for name in NAMES[:2]:
        forget(name)
        download(name, progress=False)


def test_mirror_writes_only_the_field_hub(hub: Hub, pinned: TinyZoo) -> None:
    before = json.loads(pinned.manifest.read_text("utf-8"))
    (file,) = mirror(NAMES[:1], REPO, pinned.manifest, progress=False)
    after = json.loads(pinned.manifest.read_text("utf-8"))
    assert load_manifest(pinned.manifest)[NAMES[0]].hub == file
    entry = after["models"]["isanet_tiny"]["weights"]["ssseg"]
    assert entry["hub"] == vars(file)
    entry["hub"] = None
    assert after == before
    assert hub.seen


def test_weights_that_are_not_pinned_are_refused(hub: Hub, tiny_zoo: TinyZoo) -> None:
    with pytest.raises(InputError, match=r"is not pinned.*isanet-zoo pin isanet_tiny` first"):
        mirror(["isanet_tiny"], REPO, tiny_zoo.manifest, progress=False)
    assert hub.seen == []


def test_built_in_weights_are_refused(hub: Hub) -> None:
    name = "isanet_efficientnet_lite0os8_camvid"
    with pytest.raises(InputError, match="in a distribution on its own"):
        mirror([name], REPO, lookup.manifest_path(), progress=False)
    assert hub.seen == []


def test_refused_upload_keeps_the_manifest(
    hub: Hub, pinned: TinyZoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pinned.manifest.read_bytes()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UploadError, match="no permission to write"):
        mirror(NAMES, REPO, pinned.manifest, progress=False)
    assert pinned.manifest.read_bytes() == before
    assert REPO not in hub.repositories


def test_hub_file_without_pinned_hashes_is_refused(pinned: TinyZoo, hub: Hub) -> None:
    mirror(NAMES[:1], REPO, pinned.manifest, progress=False)
    weights = get_weights(NAMES[0])
    unpinned: dict[str, Any] = {"sha256": None, "size": None, "state_digest": None}
    for field in unpinned:
        with pytest.raises(InputError, match="hub is given, but"):
            replace(weights, **{field: unpinned[field]})
    facts: dict[str, Any] = vars(weights.hub)
    with pytest.raises(InputError, match="'main'; it must be a commit"):
        HubFile(**(facts | {"revision": "main"}))
    with pytest.raises(InputError, match="'ab'; it must be a lower-case hex sha256"):
        HubFile(**(facts | {"sha256": "ab"}))
    assert hub.seen


def test_manifest_has_no_mirrored_weights() -> None:
    assert {weights.hub for weights in load_manifest().values()} == {None}


def test_command_mirrors_all_and_lists_files_in_a_dry_run(
    hub: Hub, pinned: TinyZoo, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pinned.manifest.read_bytes()
    command = ["mirror", REPO, "--all", "--manifest", str(pinned.manifest)]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert all(f"{name}/model.safetensors" in shown.out for name in NAMES)
    assert "license: other" in shown.out
    assert hub.seen == []
    assert pinned.manifest.read_bytes() == before
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [get_weights(n).hub.sha256 for n in NAMES]  # type: ignore[union-attr]
    assert main(["mirror", REPO, "isanet_huge"]) == 1
