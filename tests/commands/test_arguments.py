"""Values of options that several commands share."""

from __future__ import annotations

import argparse

import pytest
import torch

from isanet_zoo.commands import arguments
from isanet_zoo.commands.main import main
from isanet_zoo.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"), [("512", 512), ("512x1024", (512, 1024)), ("whole", "whole")]
)
def test_tile_is_a_side_a_size_or_whole(text: str, value: object) -> None:
    assert arguments.tile(text) == value


@pytest.mark.parametrize(
    "text", ["abc", "", "0", "-5", "1.5", "512x", "x512", "0x5", "1x2x3", "1e3"]
)
def test_bad_tile_is_refused_with_the_syntax(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as 512x1024"):
        arguments.tile(text)
    with pytest.raises(argparse.ArgumentTypeError, match="such as 512x1024"):
        arguments.size(text)


@pytest.mark.parametrize(
    ("best", "rank", "expected"),
    [
        ("cuda:0", None, "cuda:0"),
        ("cuda:0", "3", "cuda:3"),
        ("mps", "3", "mps"),
        ("cpu", "3", "cpu"),
    ],
)
def test_default_device_is_the_best_and_the_own_one_under_torchrun(
    monkeypatch: pytest.MonkeyPatch, best: str, rank: str | None, expected: str
) -> None:
    engine = "isanet_zoo.engines.engine"
    monkeypatch.setattr(f"{engine}.best_device", lambda: torch.device(best))
    monkeypatch.setattr(f"{engine}.resolve_device", lambda device, default: device or default)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert arguments.device(argparse.Namespace(device=None)) == expected


@pytest.mark.parametrize("name", ["gpu", "meta", "", "cuda:99"])
def test_missing_device_is_refused_with_those_of_the_machine(name: str) -> None:
    with pytest.raises(InputError, match=r"is not available; torch .* can compute on .*cpu"):
        arguments.device(argparse.Namespace(device=name))


@pytest.mark.parametrize(
    "line",
    [
        ["evaluate", "name", "--data", ""],
        ["evaluate", "name", "--data", "d", "--csv", ""],
        ["train", "name", "--data", ""],
        ["train", "name", "--data", "d", "--out", ""],
        ["predict", "a.png", "--out", ""],
        ["export", "name", ""],
        ["export", "name", "a.onnx", "--calibrate", ""],
    ],
)
def test_empty_path_is_not_the_current_folder(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(line)
    assert "the path is empty" in capsys.readouterr().err
