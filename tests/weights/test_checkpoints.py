"""Checkpoints: every container of upstream loads, and wrong or damaged files are refused."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from isanet_zoo import CheckpointError
from isanet_zoo.manifest.lookup import load_manifest
from isanet_zoo.weights import checkpoints, tensors
from isanet_zoo.weights.layouts import COUNTER, PADDLE, SSSEG
from tests import reference
from tests.conftest import TINY_NETWORK, TinyZoo

State = dict[str, Tensor]
CONTAINERS = [name for name, _, _ in reference.containers({})]


def load(path: Path) -> State:
    return checkpoints.load_checkpoint(path, TINY_NETWORK, exact=True).state


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_keys_of_upstream_map_one_to_one_onto_ours(backbone: str) -> None:
    name = f"isanet_{backbone}os8_voc"
    shapes = reference.upstream_shapes(name)
    expected = checkpoints.structure(load_manifest()[name].network, aux_loss=True)
    ours = {SSSEG.ours(key): shape for key, shape in shapes.items()}
    assert ours == {key: spec.shape for key, spec in expected.items()}
    assert {SSSEG.theirs(key) for key in ours} == shapes.keys()


@pytest.mark.parametrize("container", CONTAINERS)
def test_load_checkpoint_returns_the_same_tensors_from_every_container(
    container: str, tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    content, as_zip = next(
        (content, as_zip)
        for name, content, as_zip in reference.containers(tiny_zoo.state)
        if name == container
    )
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    state = load(path)
    assert len(state) == len(tiny_zoo.state)
    for key, tensor in tiny_zoo.state.items():
        assert torch.equal(state[SSSEG.ours(key)], tensor), key


def test_state_digest_depends_on_names_shapes_types_and_bytes() -> None:
    state = {"a": torch.arange(6.0), "b": torch.zeros(())}
    variants = [
        state,
        {"a": state["a"], "c": state["b"]},
        state | {"a": state["a"].reshape(2, 3)},
        state | {"a": state["a"].to(torch.int32)},
        state | {"a": -state["a"]},
        state | {"b": torch.tensor(-0.0)},
    ]
    assert len({tensors.state_digest(variant) for variant in variants}) == len(variants)
    strided = {"b": state["b"], "a": torch.arange(12.0)[::2] / 2}
    assert tensors.state_digest(strided) == tensors.state_digest(state)


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if name != key}


def with_value(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: state | {key: change(state[key])}


def first_becomes(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed.view(-1)[0] = value
        return changed

    return change


VALUE = "global_relation.value_project.weight"
WRONG: dict[str, tuple[Callable[[State], State], list[str]]] = {
    "missing": (without(VALUE), ["missing", VALUE]),
    "auxiliary head incomplete": (
        without("auxiliary_decoder.4.bias"),
        ["missing", "auxiliary_decoder.4.bias"],
    ),
    "renamed": (
        lambda state: without(VALUE)(state) | {"global_relation.value.weight": state[VALUE]},
        ["missing", VALUE, "unknown", "global_relation.value.weight"],
    ),
    "one too many": (
        lambda state: state | {"out_conv.0.bias": torch.zeros(16)},
        ["unknown", "out_conv.0.bias"],
    ),
    "shape": (
        with_value(VALUE, lambda tensor: tensor[:, :8]),
        [VALUE, "float32 16x8x1x1", "expected float32 16x16x1x1"],
    ),
    "no classes": (
        with_value("decoder.1.weight", lambda tensor: tensor[:0]),
        ["decoder.1.weight", "float32 0x16x1x1", "expected float32 5x16x1x1"],
    ),
    "type": (
        with_value(VALUE, lambda tensor: tensor.half()),
        [VALUE, "float16", "expected float32"],
    ),
    "not finite": (with_value(VALUE, first_becomes(float("nan"))), ["not finite", VALUE]),
    "infinite": (with_value("decoder.1.bias", first_becomes(float("inf"))), ["decoder.1.bias"]),
    "negative variance": (
        with_value("out_conv.1.running_var", first_becomes(-1e-3)),
        ["negative variances", "out_conv.1.running_var"],
    ),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("exact", [True, False])
def test_load_checkpoint_with_wrong_tensors_is_refused_by_their_keys(
    kind: str, exact: bool, tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    change, words = WRONG[kind]
    path = tmp_path / "wrong.pth"
    torch.save({"model": change(tiny_zoo.state)}, path)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_checkpoint(path, TINY_NETWORK, exact=exact)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_error_lists_ten_keys_and_the_number_of_others(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    path = tmp_path / "short.pth"
    torch.save(dict(list(tiny_zoo.state.items())[30:]), path)
    with pytest.raises(CheckpointError, match="and 20 more") as caught:
        load(path)
    assert str(caught.value).count("backbone_net.") == 10


def test_published_file_must_have_the_published_class_count(tmp_path: Path) -> None:
    other = replace(TINY_NETWORK, num_classes=7)
    shapes = {
        SSSEG.theirs(key): spec.shape
        for key, spec in checkpoints.structure(other, aux_loss=True).items()
    }
    path = tmp_path / "seven.pth"
    torch.save(reference.fill(shapes), path)
    assert checkpoints.load_checkpoint(path, TINY_NETWORK).network == other
    with pytest.raises(CheckpointError, match=r"decoder\.1\.weight \(float32 7x16x1x1"):
        load(path)


class Evil:
    """Unpickled the ordinary way, it runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("as_zip", [True, False])
def test_pickle_with_function_that_runs_code_is_refused_unrun(
    as_zip: bool, tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pth"
    content = {"model": tiny_zoo.state, "extra": Evil(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(CheckpointError, match=r"refers to posix\.system"):
        load(path)
    assert not trace.exists()


def test_plain_pickle_with_function_that_runs_code_is_refused_unrun(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load(path)
    assert not trace.exists()


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_torch_file_is_refused(
    as_zip: bool, kept: float, tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    path = tmp_path / "whole.pth"
    torch.save({"model": tiny_zoo.state}, path, _use_new_zipfile_serialization=as_zip)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CheckpointError, match="truncated" if kept else "an empty file"):
        load(path)


@given(as_zip=st.booleans(), position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_file_with_damaged_byte_loads_or_raises_checkpoint_error(
    as_zip: bool, position: float, byte: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged.pth")
        torch.save(
            {"model": {"out_conv.0.weight": torch.zeros(4), "in_conv.1.bias": torch.ones(3)}},
            path,
            _use_new_zipfile_serialization=as_zip,
        )
        content = bytearray(path.read_bytes())
        content[int(position * len(content))] = byte
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            checkpoints.load_checkpoint(path, TINY_NETWORK)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_safetensors_file_is_refused(
    kept: float, tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    tensors.save_state(load(tiny_zoo.published), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CheckpointError, match="truncated" if kept else "an empty file"):
        load(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
        (b"<html>404</html>", "an HTML page"),
        (b"<?xml version='1.0'?><Error/>", "an XML document"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "a git-lfs pointer",
        ),
        (b"once upon a time", "not a weight file"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_that_is_no_checkpoint_is_refused_by_its_kind(
    content: bytes, words: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        load(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(1)], "a list"),
        ({"fc.weight": torch.zeros(3)}, r"not an ISANet checkpoint .*its keys are fc\.weight"),
    ],
)
def test_torch_file_of_another_network_is_refused(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=words):
        load(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth cannot be read: No such file"):
        load(tmp_path / "nowhere.pth")


def test_views_of_one_storage_load_as_separate_tensors(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    base = torch.rand(2, 16)
    state = tiny_zoo.state | {"out_conv.1.bias": base[0], "in_conv.1.bias": base[1]}
    torch.save({"model": state}, tmp_path / "views.pth")
    found = load(tmp_path / "views.pth")
    assert torch.equal(found["head.fuse.norm.bias"], base[0])
    assert torch.equal(found["head.reduce.norm.bias"], base[1])


def test_check_state_equals_load_checkpoint(tiny_zoo: TinyZoo) -> None:
    loaded = checkpoints.load_checkpoint(tiny_zoo.published, TINY_NETWORK, exact=True)
    checked = checkpoints.check_state(tiny_zoo.state, TINY_NETWORK, "x", exact=True)
    assert (checked.network, checked.layout) == (loaded.network, loaded.layout)
    assert tensors.state_digest(checked.state) == tensors.state_digest(loaded.state)
    with pytest.raises(CheckpointError, match=rf"x does not hold .* missing: {VALUE}"):
        checkpoints.check_state(without(VALUE)(tiny_zoo.state), TINY_NETWORK, "x")


def test_tensors_are_on_the_cpu_whatever_the_default_device(tiny_zoo: TinyZoo) -> None:
    with torch.device("meta"):
        state = load(tiny_zoo.published)
        paddle = PADDLE.translate({"head.in_conv._batch_norm._variance": torch.ones(2)})
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    assert paddle[f"head.reduce.norm.{COUNTER}"].device.type == "cpu"


@pytest.mark.parametrize(
    "wrap", [torch.compile, torch.nn.DataParallel, AveragedModel], ids=["compile", "DP", "average"]
)
def test_unwrap_returns_the_module_inside(
    wrap: Callable[[torch.nn.Module], torch.nn.Module],
) -> None:
    inner = torch.nn.Linear(2, 2)
    assert tensors.unwrap(inner) is inner
    for wrapped in (wrap(inner), torch.nn.DataParallel(wrap(inner))):
        found = tensors.unwrap(wrapped)
        assert type(found) is torch.nn.Linear
        assert found is inner or wrap is AveragedModel  # which copies it
