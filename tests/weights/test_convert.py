"""Conversion of users' checkpoints to safetensors."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import safetensors.torch
import torch

from isanet_zoo import CheckpointError, InputError, convert_checkpoint, create_model
from isanet_zoo.commands.main import main
from isanet_zoo.weights.checkpoints import load_checkpoint
from isanet_zoo.weights.tensors import state_digest
from tests.conftest import TINY_NETWORK, TinyZoo

NAME = "isanet_tiny"


def digest(path: Path) -> str:
    return state_digest(load_checkpoint(path, TINY_NETWORK, exact=True).state)


def test_converted_file_has_the_state_digest_of_its_source(
    tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    converted = convert_checkpoint(tiny_zoo.published, tmp_path / "a.safetensors", NAME)
    assert digest(converted) == digest(tiny_zoo.published)
    again = convert_checkpoint(converted, tmp_path / "b.safetensors", NAME)
    assert again.read_bytes() == converted.read_bytes()


def test_converted_file_is_plain_safetensors(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    path = convert_checkpoint(tiny_zoo.published, tmp_path / "x.safetensors", NAME)
    model = create_model(NAME, weights=path, aux_loss=True)
    assert safetensors.torch.load_file(path).keys() == model.state_dict().keys()


def test_failed_conversion_leaves_the_folder_as_it_was(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    target = convert_checkpoint(tiny_zoo.published, folder / "old.safetensors", NAME)
    before = target.read_bytes()
    wrong = dict(list(tiny_zoo.state.items())[1:])
    torch.save({"model": wrong}, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError):
        convert_checkpoint(tmp_path / "wrong.pth", target, NAME)
    assert list(folder.iterdir()) == [target]
    assert target.read_bytes() == before


@pytest.mark.usefixtures("tiny_zoo")
@pytest.mark.parametrize("name", ["weights.pth", "nowhere/a.safetensors", ".safetensors/"])
def test_target_that_cannot_be_written_is_refused_before_reading(name: str, tmp_path: Path) -> None:
    (tmp_path / ".safetensors").mkdir()
    with pytest.raises(InputError, match="safetensors"):
        convert_checkpoint("any.pth", tmp_path / name, NAME)


@pytest.mark.usefixtures("tiny_zoo")
@pytest.mark.parametrize("source", ["a" * 300, "a\0b", "~nosuchuser/a.pth", "/dev/zero"])
def test_source_that_is_no_file_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert_checkpoint(source, tmp_path / "x.safetensors", NAME)


def test_source_or_target_that_is_no_path_is_refused(tmp_path: Path) -> None:
    for source, target in ((None, "x.safetensors"), ("", "x.safetensors"), ("a.pth", None)):
        with pytest.raises(InputError, match=r"(src|dst) is (None|''); it must be a path"):
            convert_checkpoint(source, target, NAME)  # type: ignore[arg-type]


def test_file_of_another_program_is_replaced_with_force_alone(
    tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    target = tmp_path / "mine.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, target)
    before = target.read_bytes()
    with pytest.raises(InputError, match=r"mine\.safetensors exists and was not written by"):
        convert_checkpoint(tiny_zoo.published, target, NAME)
    assert main(["convert", str(tiny_zoo.published), str(target), "-m", NAME]) == 1
    assert target.read_bytes() == before
    assert main(["convert", str(tiny_zoo.published), str(target), "-m", NAME, "--force"]) == 0
    assert digest(target) == digest(tiny_zoo.published)
    convert_checkpoint(tiny_zoo.published, target, NAME)  # now it is ours


def test_source_is_replaced_by_itself_with_force_alone(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    path = convert_checkpoint(tiny_zoo.published, tmp_path / "x.safetensors", NAME)
    (tmp_path / "link.safetensors").symlink_to(path)
    for source in (path, tmp_path / "link.safetensors"):
        with pytest.raises(InputError, match="is the checkpoint itself"):
            convert_checkpoint(source, path, NAME, half=True)
    assert convert_checkpoint(path, path, NAME, half=True, force=True) == path
    assert safetensors.torch.load_file(path)["head.classifier.weight"].dtype == torch.float16


@pytest.mark.parametrize("value", [65520.0, -1e5, 3e38])
def test_half_with_value_beyond_float16_is_refused(
    value: float, tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    key, bias = "decoder.1.bias", tiny_zoo.state["decoder.1.bias"].clone()
    bias[2] = value
    torch.save(tiny_zoo.state | {key: bias}, tmp_path / "x.pth")
    target = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"head\.classifier\.bias has values of up to .*65504"):
        convert_checkpoint(tmp_path / "x.pth", target, NAME, half=True)
    assert not target.exists()
    bias[2] = 65504
    torch.save(tiny_zoo.state | {key: bias}, tmp_path / "x.pth")
    convert_checkpoint(tmp_path / "x.pth", target, NAME, half=True)
    assert load_checkpoint(target, TINY_NETWORK).state["head.classifier.bias"][2] == 65504


def test_family_and_class_count_are_logged(
    tiny_zoo: TinyZoo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "isanet_zoo"):
        convert_checkpoint(tiny_zoo.published, tmp_path / "x.safetensors", NAME)
    assert "a file of ssseg for 5 classes, like isanet_tiny" in caplog.text
