from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import pytest
import torch
from huggingface_hub import HfApi, constants
from hypothesis import given, strategies as st
from PIL import Image

import isanet_zoo
from isanet_zoo import ISANet, create_model
from isanet_zoo.commands.main import main
from isanet_zoo.errors import (
    CheckpointError,
    DownloadError,
    InputError,
    IntegrityError,
    OfflineError,
    UploadError,
)
from isanet_zoo.hub import transfer
from isanet_zoo.hub.transfer import Address
from tests.conftest import TinyZoo
from tests.hub import stand_in
from tests.hub.models import BUILT_IN, FILES, MEASURED, assert_same, random_model
from tests.hub.stand_in import OWNER, STRANGER, Hub

ROOT = Path(isanet_zoo.__file__).parents[1]
REPO = "someone/fruits"

# How huggingface_hub itself sends a large file over plain HTTP.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, signed in as the owner."""
    with stand_in.running() as hub:
        stand_in.connect(hub, monkeypatch, tmp_path, OWNER)
        yield hub


def signed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")


def test_pushed_model_is_loaded_by_name_and_by_revision(hub: Hub) -> None:
    first, second = random_model(seed=1), random_model(in_chans=4, seed=2)
    commits = [first.push_to_hub(REPO), second.push_to_hub(REPO, commit_message="Four channels")]
    assert set(HfApi().list_repo_files(REPO)) == FILES | {".gitattributes"}
    assert hub.repositories[REPO].commits[-1][0] == commits[1]
    assert len(hub.repositories[REPO].commits) == 1 + 2  # one each
    assert_same(second, ISANet.from_pretrained(REPO))
    assert_same(first, ISANet.from_pretrained(REPO, revision=commits[0]))
    hub.repositories[REPO].tags["v1"] = commits[0]
    assert_same(first, ISANet.from_pretrained(f"hf-hub:{REPO}@v1", progress=False))
    report = ISANet.from_pretrained(REPO).load_report
    assert report.trust == "hub"
    assert 'from_pretrained("someone/fruits")' in hub.repositories[REPO].commits[-1][1][
        "README.md"
    ].decode("utf-8")


@pytest.mark.usefixtures("tiny_zoo")
def test_create_model_loads_a_repository_as_weights_and_as_name(hub: Hub) -> None:
    model = random_model()
    commit = model.push_to_hub(REPO)
    random_model(seed=3).push_to_hub(REPO)
    pinned = f"hf-hub:{REPO}@{commit}"
    assert_same(model, create_model("isanet_tiny", weights=pinned, aux_loss=True))
    assert_same(model, create_model(pinned, pretrained=True, aux_loss=True, progress=False))
    fewer = create_model(pinned, pretrained=True, num_classes=2)
    assert fewer.load_report.fresh == ("head.classifier.weight", "head.classifier.bias")
    assert fewer.load_report.trust == "hub"
    assert all(key.startswith("aux_head.") for key in fewer.load_report.unused)
    assert torch.equal(fewer.head.reduce.conv.weight, model.head.reduce.conv.weight)
    with pytest.raises(InputError, match=r"has weights; load them \(pretrained=True\)"):
        create_model(pinned)
    with pytest.raises(InputError, match="both select weights"):
        create_model("isanet_tiny", pretrained=True, weights=pinned)
    with pytest.raises(InputError, match="revision '' is not a branch, tag or commit"):
        create_model("isanet_tiny", weights=f"hf-hub:{REPO}@")
    with pytest.raises(InputError, match="'fruits' is not a repository of the Hub"):
        create_model("isanet_tiny", weights="hf-hub:fruits")
    assert hub.seen


def test_create_model_refuses_a_repository_made_from_another_model(
    hub: Hub, tiny_zoo: TinyZoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    model = create_model("isanet_tiny", pretrained=True, aux_loss=True)
    model.push_to_hub(REPO)
    again = create_model("isanet_tiny", weights=f"hf-hub:{REPO}", aux_loss=True)
    assert_same(model, again)
    assert again.weights == tiny_zoo.weights
    config = json.loads(hub.repositories[REPO].commits[-1][1]["config.json"])
    config["model"] = "isanet_resnet18"
    hub.repositories[REPO].commit({"config.json": json.dumps(config).encode()})
    with pytest.raises(CheckpointError, match="made from isanet_resnet18, not from isanet_tiny"):
        create_model("isanet_tiny", weights=f"hf-hub:{REPO}")
    assert_same(model, ISANet.from_pretrained(REPO))


def test_model_from_the_hub_keeps_its_origin(hub: Hub, tmp_path: Path) -> None:
    main(["push", BUILT_IN, REPO])
    model = create_model(BUILT_IN, weights=f"hf-hub:{REPO}")  # without the auxiliary head
    model.save_pretrained(tmp_path / "again")
    origin = ISANet.from_pretrained(tmp_path / "again").origin
    assert origin is not None
    assert origin.metrics == isanet_zoo.get_weights(BUILT_IN).metrics
    assert origin.provenance is not None
    assert origin.provenance.unchanged
    random_model().push_to_hub(REPO, dataset="Fruit train", metrics=[MEASURED])
    model = create_model(f"hf-hub:{REPO}", pretrained=True)  # described by its config alone
    model.save_pretrained(tmp_path / "fruits")
    origin = ISANet.from_pretrained(tmp_path / "fruits").origin
    assert origin is not None
    assert (origin.dataset, origin.metrics) == ("Fruit train", (MEASURED,))
    assert hub.seen


def test_prefix_selects_the_repository_over_a_folder_of_the_same_name(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = random_model(seed=1), random_model(seed=2)
    there.push_to_hub(REPO)
    monkeypatch.chdir(tmp_path)
    here.save_pretrained(REPO)
    assert_same(here, ISANet.from_pretrained(REPO))
    assert_same(there, ISANet.from_pretrained(f"hf-hub:{REPO}"))
    assert hub.seen


def test_private_repository_without_a_token_is_a_download_error(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    model.push_to_hub(REPO, private=True)
    assert hub.repositories[REPO].private
    signed_out(monkeypatch)
    for token in (None, STRANGER):
        with pytest.raises(
            DownloadError, match=r"no repository someone/fruits, or it is private.*login"
        ):
            ISANet.from_pretrained(REPO, token=token)
    with pytest.raises(
        DownloadError, match="there is no repository someone/else, or it is private"
    ):
        ISANet.from_pretrained("someone/else")
    assert_same(model, ISANet.from_pretrained(REPO, token=OWNER))


def test_gated_repository_is_a_download_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model().push_to_hub(REPO)
    hub.repositories[REPO].gated = True
    signed_out(monkeypatch)
    with pytest.raises(DownloadError, match="is gated: request access"):
        ISANet.from_pretrained(REPO)


def test_unknown_revision_is_a_download_error_that_names_it(hub: Hub) -> None:
    random_model().push_to_hub(REPO)
    for revision in ("v9", "0" * 40):
        with pytest.raises(
            DownloadError, match=f"{REPO}@{revision}: there is no such branch, tag or"
        ):
            ISANet.from_pretrained(REPO, revision=revision)
    with pytest.raises(InputError, match="both name a revision"):
        ISANet.from_pretrained(f"hf-hub:{REPO}@a", revision="b")
    assert hub.seen


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_a_checkpoint_error_that_names_it(hub: Hub, name: str) -> None:
    random_model().push_to_hub(REPO)
    hub.repositories[REPO].commit({}, remove=name)
    with pytest.raises(CheckpointError, match=rf"someone/fruits: {name}.*(missing|No such file)"):
        ISANet.from_pretrained(REPO)


def test_pickles_are_not_downloaded(hub: Hub) -> None:
    repository = hub.make(REPO)
    repository.commit({"pytorch_model.bin": b"\x80\x02", "model.pth": b"\x80\x02"})
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        ISANet.from_pretrained(REPO)
    assert not any("pytorch_model.bin" in seen or "model.pth" in seen for seen in hub.seen)


def test_changed_byte_is_an_integrity_error(hub: Hub) -> None:
    random_model().push_to_hub(REPO)
    content = bytearray(hub.repositories[REPO].commits[-1][1]["model.safetensors"])
    content[-2] ^= 1
    hub.repositories[REPO].commit({"model.safetensors": bytes(content)})
    with pytest.raises(IntegrityError, match=r"someone/fruits: model\.safetensors is damaged"):
        ISANet.from_pretrained(REPO)


def test_unreachable_hub_is_one_error_that_names_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.broken = 404  # a web server that is no hub
    with pytest.raises(DownloadError, match=r"could not reach the Hub .*HF_ENDPOINT"):
        ISANet.from_pretrained(REPO)
    with stand_in.Hub() as closed:
        url = closed.url
    monkeypatch.setattr(constants, "ENDPOINT", url)
    with pytest.raises(
        DownloadError, match=rf"could not reach the Hub at {url} \(the connection was refused"
    ):
        ISANet.from_pretrained(REPO)
    with pytest.raises(
        UploadError, match=rf"could not reach the Hub at {url} \(the connection was refused"
    ):
        random_model().push_to_hub(REPO)


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC])
def test_unusable_cache_of_the_hub_is_one_error_that_names_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), "/home/other/hub")

    monkeypatch.setattr(transfer, "snapshot_download", refuse)
    with pytest.raises(DownloadError, match=rf"cannot be used .*{os.strerror(code)}.*HF_HUB_CACHE"):
        ISANet.from_pretrained(REPO)


def test_offline_mode_uses_the_cache_or_names_the_ways_out(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    model.push_to_hub(REPO)
    monkeypatch.setenv("ISANET_ZOO_OFFLINE", "1")
    seen = len(hub.seen)
    with pytest.raises(OfflineError, match=r"not on this machine.*unset ISANET_ZOO_OFFLINE"):
        ISANet.from_pretrained(REPO)
    with pytest.raises(UploadError, match="offline mode is on"):
        model.push_to_hub(REPO)
    assert len(hub.seen) == seen
    monkeypatch.delenv("ISANET_ZOO_OFFLINE")
    ISANet.from_pretrained(REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # after huggingface_hub was imported
    seen = len(hub.seen)
    assert_same(model, ISANet.from_pretrained(REPO))
    assert len(hub.seen) == seen


def test_push_without_permission_is_an_upload_error(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    model.push_to_hub(REPO)
    before = len(hub.repositories[REPO].commits)
    signed_out(monkeypatch)
    for token, status in ((None, 401), (STRANGER, 403)):
        with pytest.raises(UploadError, match=rf"no permission to write .*{status}.*hf auth login"):
            random_model(seed=1).push_to_hub(REPO, token=token)
    assert len(hub.repositories[REPO].commits) == before


def test_private_push_to_a_public_repository_is_an_upload_error(hub: Hub) -> None:
    hub.make(REPO)
    with pytest.raises(UploadError, match="exists and is public; nothing was written"):
        random_model().push_to_hub(REPO, private=True)
    assert len(hub.repositories[REPO].commits) == 1
    with pytest.raises(InputError, match="is not a repository of the Hub"):
        random_model().push_to_hub("fruits")


def test_card_that_the_hub_refuses_is_an_upload_error(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isanet_zoo.hub.card, "render", lambda *_: "---\nlicense: 3\n---\n")
    with pytest.raises(UploadError, match=r"was not written: Invalid metadata"):
        random_model().push_to_hub(REPO)
    assert len(hub.repositories[REPO].commits) == 1


def test_push_of_the_same_model_makes_no_commit(hub: Hub) -> None:
    first, second = (random_model().push_to_hub(REPO) for _ in range(2))
    assert first == second
    assert len(hub.repositories[REPO].commits) == 1 + 1


def test_download_during_a_push_returns_one_commit(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model is pushed between the downloads of two files."""
    old, new = random_model(seed=1), random_model(seed=2)
    old.push_to_hub(REPO)
    names: list[str] = []
    resolve = stand_in._Handler.resolve

    def push_first(self: stand_in._Handler, repo: str, revision: str, name: str) -> None:
        if not names:
            files = dict(zip(sorted(FILES), [b"", b"{}", b""], strict=True))
            hub.repositories[REPO].commit(files)
        names.append(name)
        resolve(self, repo, revision, name)

    route = next(route for route in stand_in.ROUTES if "/resolve/" in route)
    monkeypatch.setitem(stand_in.ROUTES, route, push_first)
    assert_same(old, ISANet.from_pretrained(REPO))
    assert set(names) == {"config.json", "model.safetensors"}
    new.push_to_hub(REPO)
    assert_same(new, ISANet.from_pretrained(REPO))


# Names and revisions


def test_parse_splits_repository_and_revision() -> None:
    assert transfer.parse("hf-hub:a/b") == Address("a/b", None)
    assert transfer.parse("hf-hub:a/b@refs/pr/1") == Address("a/b", "refs/pr/1")
    assert str(transfer.parse("hf-hub:a/b@v1")) == "a/b@v1"


@pytest.mark.parametrize(
    "repo", ["", "a", "a/b/c", "a b/c", "../a", "a/..", "a/../b", "/a/b", "a\\b/c", "a/b\n", "é/b"]
)
def test_name_that_is_not_a_repository_is_an_input_error(hub: Hub, repo: str) -> None:
    with pytest.raises(InputError, match="is not a repository of the Hub"):
        ISANet.from_pretrained(f"hf-hub:{repo}")
    with pytest.raises(InputError):
        random_model().push_to_hub(repo)
    assert hub.seen == []


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", "größe", "a-b_c+d", "0" * 40])
def test_git_reference_or_commit_is_a_revision(revision: str) -> None:
    assert Address("a/b", revision).revision == revision


BAD_REVISIONS = [
    "", "../../x", "a/../b", "..", ".", "/main", "main/", "a//b", "-main", ".hidden", "a/.b",
    "a.lock", "a.", "main?x=1", "main#x", "main%2e%2e", "a b", "a\nb", "a\0b", "a\\b", "a:b", "a~1",
    "a^", "a*", "a[b", "main@{1}", "http://x", "x" * 300, "\x1b[2J",
]  # fmt: skip


@pytest.mark.parametrize("revision", BAD_REVISIONS)
def test_revision_that_git_would_refuse_is_an_input_error(hub: Hub, revision: str) -> None:
    hub.make(REPO)
    loads: tuple[Callable[[], object], ...] = (
        lambda: ISANet.from_pretrained(f"hf-hub:{REPO}@{revision}"),
        lambda: ISANet.from_pretrained(REPO, revision=revision),
        lambda: create_model(f"hf-hub:{REPO}@{revision}", pretrained=True),
        lambda: create_model(BUILT_IN, weights=f"hf-hub:{REPO}@{revision}"),
    )
    for load in loads:
        with pytest.raises(InputError, match=r"is not a branch, tag or commit") as caught:
            load()
        assert str(caught.value).isprintable()
    assert hub.seen == []


@given(st.text(max_size=20))
def test_revision_never_leaves_its_place_in_a_path_or_url(text: str) -> None:
    with contextlib.suppress(InputError):
        revision = Address("a/b", text).revision
        assert revision == text
        assert PurePosixPath("/a", text).is_relative_to("/a")
        assert ".." not in PurePosixPath(text).parts
        assert urlsplit(f"https://h/{text}") == ("https", "h", f"/{text}", "", "")


# Commands


def test_push_command_uploads_the_built_in_model_completely(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", BUILT_IN, REPO]) == 0
    out = capsys.readouterr().out.strip()
    assert out == f"hf-hub:{REPO}@{hub.repositories[REPO].commits[-1][0]}"
    model = ISANet.from_pretrained(REPO)
    assert_same(create_model(BUILT_IN, pretrained=True, aux_loss=True), model)
    assert_same(create_model(BUILT_IN, pretrained=True), create_model(out, pretrained=True))
    assert model.origin is not None
    assert model.origin.metrics == isanet_zoo.get_weights(BUILT_IN).metrics


def test_push_command_uploads_a_file_of_the_user(
    hub: Hub, tiny_zoo: TinyZoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.safetensors"
    model = random_model(aux_loss=False)
    isanet_zoo.save_model(model, file)
    arguments = ["push", tiny_zoo.weights.name, REPO, "-w", str(file), "--private"]
    assert main([*arguments, "--licence", "mit"]) == 0
    assert hub.repositories[REPO].private
    again = ISANet.from_pretrained(REPO)
    assert_same(model, again)
    assert again.origin is not None
    assert again.origin.licence == "mit"
    assert "hf-hub:someone/fruits@" in capsys.readouterr().out


def test_push_command_dry_run_makes_no_request(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", BUILT_IN, REPO, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert all(name in shown.out for name in FILES)
    assert "MB  model.safetensors" in shown.out
    assert "verified: false" in shown.out
    assert 'from_pretrained("someone/fruits")' in shown.out
    assert "nothing was uploaded" in shown.err
    assert hub.seen == []
    assert main(["push", BUILT_IN, "fruits", "--dry-run"]) == 1
    assert "is not a repository of the Hub" in capsys.readouterr().err


def test_commands_use_the_hub_of_hf_endpoint(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[..., None]
) -> None:
    """With the variables that users set, which huggingface_hub reads when it is imported."""
    for name, value in (
        ("HF_ENDPOINT", hub.url),
        ("HF_TOKEN", OWNER),
        ("HF_HOME", str(tmp_path / "home")),
        ("HF_HUB_DISABLE_XET", "1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", "http://nowhere.invalid")  # of the old module
    forget("huggingface_hub", "isanet_zoo")
    run = importlib.import_module("isanet_zoo.commands.main").main
    assert run(["push", BUILT_IN, REPO]) == 0
    with Image.open(ROOT / "examples" / "street.jpg") as photo:
        photo.resize((96, 72)).save(tmp_path / "street.jpg")
    arguments = ["predict", str(tmp_path / "street.jpg"), "-m", f"hf-hub:{REPO}", "--no-resize"]
    assert run([*arguments, "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "street.overlay.png").is_file()
    assert f"POST /api/models/{REPO}/commit/main" in hub.seen
    assert (tmp_path / "home" / "hub").is_dir()
