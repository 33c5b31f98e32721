"""Loaded networks are independent of their files and of each other's tensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isanet_zoo import CheckpointError, ISANet, convert_checkpoint, create_model, predict
from isanet_zoo.weights import stored
from isanet_zoo.weights.checkpoints import load_encoder
from isanet_zoo.weights.containers import read_safetensors
from tests import reference
from tests.conftest import TinyZoo

NAME = "isanet_tiny"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def published(zoo: TinyZoo, folder: Path) -> tuple[Callable[[], ISANet], Path]:
    """A published file, from the cache."""
    shutil.copy(zoo.published, zoo.weights.path().parent / zoo.weights.filename)
    return lambda: create_model(NAME, pretrained=True, aux_loss=True), zoo.weights.path()


def own_file(zoo: TinyZoo, folder: Path) -> tuple[Callable[[], ISANet], Path]:
    """A converted file."""
    path = convert_checkpoint(zoo.published, folder / "own.safetensors", NAME)
    return lambda: create_model(NAME, weights=path, aux_loss=True), path


def half_file(zoo: TinyZoo, folder: Path) -> tuple[Callable[[], ISANet], Path]:
    """A converted file of float16."""
    path = convert_checkpoint(zoo.published, folder / "own.safetensors", NAME, half=True)
    return lambda: create_model(NAME, weights=path, aux_loss=True), path


def torch_file(zoo: TinyZoo, folder: Path) -> tuple[Callable[[], ISANet], Path]:
    """A file of torch, in which tensors share storages and are not contiguous."""
    state = dict(zoo.state)
    shared = torch.rand(16)
    for key in ("out_conv.1.bias", "in_conv.1.bias", "out_conv.1.running_mean"):
        state[key] = shared
    key = "out_conv.0.weight"
    state[key] = state[key].contiguous(memory_format=torch.channels_last)
    torch.save({"model": state}, folder / "own.pth")
    return lambda: create_model(NAME, weights=folder / "own.pth", aux_loss=True), folder / "own.pth"


def legacy_file(zoo: TinyZoo, folder: Path) -> tuple[Callable[[], ISANet], Path]:
    """A file of torch before 1.6."""
    path = folder / "legacy.pth"
    torch.save({"model": zoo.state}, path, _use_new_zipfile_serialization=False)
    return lambda: create_model(NAME, weights=path, aux_loss=True), path


def paddle_file(zoo: TinyZoo, folder: Path) -> tuple[Callable[[], ISANet], Path]:
    """A pickle of arrays, with the names of the tiny network's family."""
    path = reference.save(zoo.state, "paddle", folder / "own.pdparams")
    return lambda: create_model(NAME, weights=path, aux_loss=True), path


def saved_folder(zoo: TinyZoo, folder: Path) -> tuple[Callable[[], ISANet], Path]:
    """A folder of `save_pretrained`."""
    create_model(NAME, weights=zoo.published, aux_loss=True).save_pretrained(folder / "saved")
    return lambda: ISANet.from_pretrained(folder / "saved"), folder / "saved/model.safetensors"


def encoder_file(zoo: TinyZoo, folder: Path) -> tuple[Callable[[], ISANet], Path]:
    """A file with the encoder's tensors alone."""
    model = create_model(NAME, weights=zoo.published, aux_loss=True)
    torch.save(model.backbone.state_dict(), folder / "encoder.pth")

    def load() -> ISANet:
        load_encoder(model, folder / "encoder.pth")
        return model

    return load, folder / "encoder.pth"


WAYS = [published, own_file, half_file, torch_file, legacy_file, paddle_file, saved_folder,
        encoder_file]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_loaded_model_keeps_its_weights_when_its_file_is_overwritten_and_truncated(
    way: Callable[[TinyZoo, Path], tuple[Callable[[], ISANet], Path]],
    tiny_zoo: TinyZoo,
    tmp_path: Path,
) -> None:
    tiny_zoo.weights.path().parent.mkdir(parents=True)
    load, path = way(tiny_zoo, tmp_path)
    model = load()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    labels = predict(model, IMAGE).labels  # type: ignore[union-attr]
    with path.open("r+b") as file:  # as `cp` overwrites
        file.write(bytes(path.stat().st_size))
        file.truncate(100)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert np.array_equal(predict(model, IMAGE).labels, labels)  # type: ignore[union-attr]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_tensors_of_a_loaded_model_own_their_memory(
    way: Callable[[TinyZoo, Path], tuple[Callable[[], ISANet], Path]],
    tiny_zoo: TinyZoo,
    tmp_path: Path,
) -> None:
    tiny_zoo.weights.path().parent.mkdir(parents=True)
    model = way(tiny_zoo, tmp_path)[0]()
    tensors: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    assert tensors.keys() == model.state_dict().keys()
    for key, tensor in tensors.items():
        assert isinstance(tensor, nn.Parameter) == (not key.endswith(BUFFERS)), key
        assert tensor.requires_grad == isinstance(tensor, nn.Parameter), key
        assert tensor.is_leaf, key
        assert tensor.is_contiguous(), key
        assert tensor.dtype == (torch.int64 if key.endswith("tracked") else torch.float32), key
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, key
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)


def test_file_that_is_truncated_while_it_is_read_is_refused(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = convert_checkpoint(tiny_zoo.published, tmp_path / "x.safetensors", NAME)
    allocate = stored.allocate

    def truncate(*args: object) -> Tensor:
        with path.open("r+b") as file:
            file.truncate(9000)
        return allocate(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("isanet_zoo.weights.stored.allocate", truncate)
    monkeypatch.setattr("isanet_zoo.weights.containers.allocate", truncate)
    with pytest.raises(CheckpointError, match="truncated"):
        create_model(NAME, weights=path)
    path = convert_checkpoint(tiny_zoo.published, tmp_path / "y.safetensors", NAME)
    with pytest.raises(CheckpointError, match="truncated"):
        read_safetensors(path, "y")
