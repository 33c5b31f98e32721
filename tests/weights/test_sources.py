from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from isanet_zoo.errors import (
    DownloadError,
    InputError,
    IntegrityError,
    OfflineError,
    SourceError,
)
from isanet_zoo.manifest.lookup import get_weights
from isanet_zoo.manifest.weights import HubFile
from isanet_zoo.weights import sources

WEIGHTS = get_weights("isanet_resnet50os8_voc")
PLACE = Path("/cache/isanet_resnet50os8_voc/isanet_resnet50os8_voc.pth")


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        ("", []),
        (" , ", []),
        ("/data/weights/", ["/data/weights/a b.pth"]),
        ("~/weights", [str(Path("~/weights/a b.pth").expanduser())]),
        ("https://example.org/w/", ["https://example.org/w/a%20b.pth"]),
        ("HTTPS://example.org/w", ["HTTPS://example.org/w/a%20b.pth"]),
        ("file:///data", ["file:///data/a%20b.pth"]),
        ("ftp://example.org", ["ftp://example.org/a%20b.pth"]),
        ("/one, http://two", ["/one/a b.pth", "http://two/a%20b.pth"]),
    ],
)
def test_mirrors_are_folders_and_urls(
    monkeypatch: pytest.MonkeyPatch, mirror: str, expected: list[str]
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", mirror)
    assert sources.mirrors("a b.pth") == expected


def test_mirror_of_an_unknown_user_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", "~nosuchuser/weights")
    with pytest.raises(InputError, match="~nosuchuser/weights"):
        sources.mirrors("a.pth")


def test_sources_are_by_hand_then_mirrors_then_hub_then_publisher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = tmp_path / "a.pth"
    monkeypatch.setenv("ISANET_ZOO_MIRROR", "/mirror")
    hub = HubFile("someone/weights", "0" * 40, "a.safetensors", "1" * 64, 5)
    known = replace(WEIGHTS, sha256="2" * 64, size=9, state_digest="3" * 64, hub=hub)
    rest = [f"/mirror/{WEIGHTS.filename}", hub.url, *WEIGHTS.sources]
    assert sources.find_sources(known, by_hand) == rest
    by_hand.touch()
    assert sources.find_sources(known, by_hand) == [str(by_hand), *rest]


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (SourceError("the connection was refused", tries=2), True),
        (SourceError("answered 503 Service Unavailable"), True),
        (SourceError("answered 404 Not Found", tries=1), False),  # it may have other files
        (IntegrityError("has sha256 0"), False),
        (OfflineError("skipped (offline mode)"), False),
    ],
)
def test_find_sources_after_a_failed_server_tries_it_last(
    error: Exception, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", "/mirror,https://a.example/w")
    folder, server, publisher = sources.find_sources(WEIGHTS, PLACE)
    sources.note_failure("https://a.example/other.pth", error)
    sources.note_failure(folder, SourceError("No such file or directory"))
    expected = [folder, publisher, server] if last else [folder, server, publisher]
    assert sources.find_sources(WEIGHTS, PLACE) == expected


def test_largest_size_is_the_manifest_s_or_a_multiple_of_the_parameters() -> None:
    assert WEIGHTS.parameters.with_aux == 44267402
    # A published file with Adam's two moments is three times as large as its parameters.
    assert 3 < sources.largest_size(WEIGHTS) / (4 * 44267402) < 6
    assert sources.largest_size(replace(WEIGHTS, size=1234)) == 1234
    hub = HubFile("someone/weights", "0" * 40, "a.safetensors", "1" * 64, 2000)
    known = replace(WEIGHTS, sha256="2" * 64, size=1234, state_digest="3" * 64, hub=hub)
    assert sources.largest_size(known) == 2000
    student = get_weights("isanet_resnet18os8_cityscapes")
    teacher = get_weights("isanet_resnet101os8_pascal_context")
    with_teacher = student.parameters.with_aux + teacher.parameters.with_aux
    assert sources.largest_size(student) > 4 * (2 * student.parameters.with_aux + with_teacher)


@pytest.mark.parametrize("variable", ["ISANET_ZOO_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES", " on "])
def test_check_online_refuses_servers_in_offline_mode(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.delenv("ISANET_ZOO_OFFLINE")
    sources.check_online("https://a/b")
    monkeypatch.setenv(variable, value)
    for source in ("https://a/b", "HTTP://a/b"):
        with pytest.raises(OfflineError, match=r"skipped \(offline mode\)"):
            sources.check_online(source)
    for source in ("/a/b", "file:///a/b", "a/b"):
        sources.check_online(source)


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
def test_check_online_ignores_variables_that_are_off(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ISANET_ZOO_OFFLINE", value)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    sources.check_online("https://a/b")


def test_not_fetched_lists_sources_and_the_plain_link_before_other_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ISANET_ZOO_OFFLINE")
    tried = [("https://a/b.pth", SourceError("answered 404 Not Found")), ("/c", SourceError("no"))]
    error = sources.not_fetched(WEIGHTS, tried, PLACE)
    assert type(error) is DownloadError
    assert error.tried == tried
    message = str(error)
    assert "\n  https://a/b.pth: answered 404 Not Found\n  /c: no" in message
    parts = ["by hand from https://github.com/", "BaiduNetdisk", str(PLACE), "ISANET_ZOO_MIRROR"]
    positions = [message.index(part) for part in parts]
    assert positions == sorted(positions)


def test_not_fetched_offline_names_three_ways_out() -> None:
    tried: list[tuple[str, Exception]] = [("https://a", OfflineError("skipped (offline mode)"))]
    error = sources.not_fetched(WEIGHTS, tried, PLACE)
    assert type(error) is OfflineError
    for part in ("is not on this machine", "Unset ISANET_ZOO_OFFLINE and HF_HUB_OFFLINE",
                 f"at {PLACE}", "ISANET_ZOO_MIRROR"):  # fmt: skip
        assert part in str(error)
    tried.append(("/mirror/a.pth", SourceError("returned an HTML page instead of a checkpoint")))
    assert "was refused (see below)" in str(sources.not_fetched(WEIGHTS, tried, PLACE))


def test_not_fetched_escapes_and_bounds_the_text_of_sources() -> None:
    tried = [("https://a", ValueError(f"one\nisanet-zoo: all is well \x1b[2J{'x' * 5000}"))] * 3
    error = sources.not_fetched(WEIGHTS, tried, PLACE)
    assert len(str(error)) < 4100
    assert str(error).count("\n") == 3
    assert "\x1b" not in str(error)


def test_not_fetched_without_a_plain_link_names_the_page() -> None:
    openseg = get_weights("isanet_resnet101os8_cityscapes.openseg")
    assert "Google Drive" in str(sources.not_fetched(openseg, [], PLACE))
    assert "Sources tried: none" in str(sources.not_fetched(openseg, [], PLACE))


def test_progress_bar_appears_with_the_first_byte_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with sources.progress_bar("a.pth", True) as show:
        assert show is not None
        assert capsys.readouterr().err == ""
        show(50, 100)
        show(100, 100)
    out, err = capsys.readouterr()
    assert out == ""
    assert "a.pth: 100%" in err


def test_progress_bar_that_is_not_wanted_draws_nothing() -> None:
    with sources.progress_bar("a.pth", False) as show:
        assert show is None
