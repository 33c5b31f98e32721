from __future__ import annotations

import json
from pathlib import Path

import pytest

from isanet_zoo.cache import (
    CacheEntry,
    GraphEntry,
    GraphFile,
    graph_entries,
    graph_versions,
)
from isanet_zoo.commands.main import main
from tests.conftest import TinyZoo


def test_download_prints_paths_and_continues_after_failures(
    tiny: TinyZoo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", "nonsense", "isanet_tiny"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tiny.weights.path())]
    assert "nonsense" in captured.err
    assert "isanet_tiny.pth" in captured.err  # the progress bar
    assert main(["download", "--all"]) == 0
    assert capsys.readouterr().err == "isanet-zoo: isanet_tiny: pinned weights\n"  # no bar


def test_download_offline_prints_the_ways_out(
    tiny_zoo: TinyZoo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", "isanet_tiny"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("isanet-zoo: error: isanet_tiny.pth is not on this machine")  # no bar
    assert "ISANET_ZOO_OFFLINE" in err
    assert "ISANET_ZOO_MIRROR" in err
    assert str(tiny_zoo.weights.path().with_name("isanet_tiny.pth")) in err


def test_verify_of_an_empty_cache_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing is cached in" in captured.err


@pytest.mark.usefixtures("tiny")
def test_verify_reports_each_cached_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "isanet_tiny"]) == 0
    capsys.readouterr()
    assert main(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"isanet_tiny": None}
    model = CacheEntry.of("isanet_tiny").model
    content = bytearray(model.read_bytes())
    content[-100] ^= 1
    model.write_bytes(content)
    stranger = CacheEntry.of("stranger").model
    stranger.parent.mkdir()
    stranger.touch()
    assert main(["verify"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("isanet_tiny  its sha256 is")
    assert second == "stranger     its name is not in the manifest"


@pytest.mark.usefixtures("tiny")
def test_cache_prints_its_folder_and_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "isanet_tiny"]) == 0
    model = CacheEntry.of("isanet_tiny").model
    capsys.readouterr()
    assert main(["cache"]) == 0
    folder, row = capsys.readouterr().out.splitlines()
    assert folder == str(model.parents[1])
    assert row.split() == ["isanet_tiny", f"{model.stat().st_size / 1e6:.1f}", "MB"]
    assert main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == {"isanet_tiny": model.stat().st_size}


def test_cache_remove_deletes_weights_and_keeps_files_of_the_user(
    tiny: TinyZoo, capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand = tiny.weights.path().with_name(tiny.weights.filename)
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(tiny.published.read_bytes())
    assert main(["download", "isanet_tiny"]) == 0
    capsys.readouterr()
    assert main(["cache", "--remove", "isanet_tiny"]) == 0
    assert f"kept {by_hand}, which isanet-zoo did not write" in capsys.readouterr().err
    assert list(by_hand.parent.iterdir()) == [by_hand]
    assert main(["cache", "--remove", "isanet_tiny"]) == 1
    assert "isanet_tiny is not cached" in capsys.readouterr().err
    assert main(["cache", "--remove", ""]) == 1
    assert "'' is not a name of weights" in capsys.readouterr().err
    assert by_hand.exists()


def test_cache_remove_of_a_path_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "photos"
    outside.mkdir()
    for name in ("model.safetensors", "model.json"):
        (outside / name).touch()
    (tmp_path / "cache").mkdir()
    assert main(["cache", "--remove", "../photos", str(outside), "."]) == 1
    assert capsys.readouterr().err.count("is not a name of weights") == 3
    assert len(list(outside.iterdir())) == 2


@pytest.mark.parametrize("command", [["cache"], ["verify"], ["cache", "--remove", "a"], ["env"]])
def test_unknown_user_in_the_cache_variable_is_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ISANET_ZOO_CACHE", "~nosuchuser/weights")
    assert main(command) == 1
    err = capsys.readouterr().err
    assert "~nosuchuser/weights" in err
    assert err.count("\n") == 1


def test_cache_shows_prunes_and_removes_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    for key, versions in (("new", graph_versions()), ("old", "isanet_zoo 0.0"), ("lost", "")):
        entry = GraphEntry.of(key)
        entry.folder.mkdir(parents=True)
        entry.model.write_bytes(b"12345")
        if versions:
            entry.write_side(GraphFile("isanet_tiny", "int8", versions, "0" * 64, 2_500_000))
    assert main(["cache"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "lost    -  MB  graph, damaged",
        "new   2.5  MB  graph of isanet_tiny, int8",
        "old   2.5  MB  graph of isanet_tiny, int8, of other versions",
    ]
    assert main(["cache", "--json"]) == 0
    graphs = json.loads(capsys.readouterr().out)["graphs"]
    assert graphs["new"]["versions"] == graph_versions()
    assert graphs["lost"] is None
    assert main(["cache", "--prune"]) == 0
    assert capsys.readouterr().out.split() == ["lost", "old"]
    assert [entry.name for entry in graph_entries()] == ["new"]
    assert main(["cache", "--remove", "new"]) == 0
    assert not graph_entries()
    assert not GraphEntry.of("new").folder.exists()
