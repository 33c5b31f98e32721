"""Saved models that are refused, and saves that are."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from isanet_zoo import ISANet
from isanet_zoo.errors import CheckpointError, InputError, IntegrityError
from tests.hub.models import (
    FILES,
    MEASURED,
    assert_same,
    edit,
    fields,
    random_model,
)


def test_missing_tensor_is_refused(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load(path.read_bytes())  # `load_file` may map the file, which is overwritten here
    for key in [*list(state)[:: len(state) // 5], "head.classifier.bias"]:
        save_file({name: state[name] for name in state if name != key}, path)
        with pytest.raises(CheckpointError, match=rf"model\.safetensors .*missing: {key}"):
            ISANet.from_pretrained(tmp_path)


def test_additional_tensor_is_refused(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"head.surprise": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"unknown: head\.surprise"):
        ISANet.from_pretrained(tmp_path)


def test_missing_field_is_refused(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path, metrics=[MEASURED], licence="mit")
    text = (tmp_path / "config.json").read_text("utf-8")
    deleted = list(fields(json.loads(text)))
    assert len(deleted) > 30
    for keys in deleted:
        (tmp_path / "config.json").write_text(text, "utf-8")
        edit(tmp_path, *keys)
        where = r"\.".join(["config", "json", *keys[:-1]])
        with pytest.raises(CheckpointError, match=rf"{where}: missing {keys[-1]}$"):
            ISANet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("surprise",), 1, "unknown surprise"),
        (("network", "head", "surprise"), 1, r"network\.head: unknown surprise"),
        (("network", "num_classes"), 7, "num_classes is 7, but label_set has 5"),
        (("network", "in_chans"), 4, "expected float32 [0-9]+x4x3x3"),
        (("network", "backbone"), "resnet5o", "timm has no model 'resnet5o'"),
        (("network", "backbone"), "hf-hub:some/one", "timm has no model 'hf-hub:some/one'"),
        (("network", "backbone"), "vgg11", "stride"),
        (("network", "head", "fuse_kernel"), 3, "fuse"),
        (("network", "head", "channels"), 10**7, "channels is 10000000; it must be"),
        (("aux_head",), False, "unknown: aux_head"),
        (("label_set", "palette"), ["red"] * 5, "palette\\[0\\] is 'red'"),
        (("library_name",), "timm", "'timm'; it must be one of 'isanet_zoo'"),
        (("format",), 2, "format is 2; it must be one of 1"),
        (("state_digest",), "0123", "state_digest is '0123'; it must be a lower-case hex sha256"),
        (("preprocess", "mean"), [1.0], "mean has 1 items; there must be 3"),
    ],
)
def test_wrong_field_is_refused_with_its_address(
    keys: tuple[str, ...], value: object, message: str, tmp_path: Path
) -> None:
    random_model().save_pretrained(tmp_path)
    edit(tmp_path, *keys, value=value)
    with pytest.raises(CheckpointError, match=message):
        ISANet.from_pretrained(tmp_path)


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing; isanet_zoo did not save"):
        ISANet.from_pretrained(tmp_path)
    random_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "kept")
    for text in ("{", "[" * 100_000, "\udcff"):
        (tmp_path / "config.json").write_text(text, "utf-8", "surrogateescape")
        with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
            ISANet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json is a list; it must be an object"):
        ISANet.from_pretrained(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "config.json")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: No such file"):
        ISANet.from_pretrained(tmp_path)


def test_pickle_as_model_file_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    random_model().save_pretrained(tmp_path)
    torch.save({"model": Bomb()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        ISANet.from_pretrained(tmp_path)
    state = random_model().state_dict()
    torch.save(state, tmp_path / "model.safetensors")  # harmless, and still no safetensors
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        ISANet.from_pretrained(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_damaged_and_exchanged_tensors_are_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        random_model(seed=seed).save_pretrained(tmp_path / str(seed))
    shutil.copy(tmp_path / "1" / "model.safetensors", tmp_path / "2")
    with pytest.raises(IntegrityError, match="damaged, or belongs to another config"):
        ISANet.from_pretrained(tmp_path / "2")
    path = tmp_path / "1" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # of a number
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="the config states"):
        ISANet.from_pretrained(tmp_path / "1")


def test_model_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    broken = random_model()
    torch.nn.init.constant_(broken.head.classifier.bias, float("nan"))  # type: ignore[arg-type]
    other = random_model()
    other.head.classifier = torch.nn.Conv2d(16, 9, 1)
    double = random_model().double()
    for model, message in ((broken, "not finite"), (other, "9x16"), (double, "float64")):
        with pytest.raises(CheckpointError, match=f"the model to save does not .*{message}"):
            model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("step", range(4))
def test_interrupted_save_leaves_the_old_or_no_model(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = random_model(seed=1), random_model(seed=2)
    old.save_pretrained(tmp_path)
    count = 0
    move = Path.replace

    def fail(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > step:
            raise OSError(28, "No space left on device")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    if step < 3:
        with pytest.raises(InputError, match=r"cannot be written: .*No space left"):
            new.save_pretrained(tmp_path)
    else:
        new.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    if step == 2:
        with pytest.raises(IntegrityError):
            ISANet.from_pretrained(tmp_path)
    else:
        assert_same(new if step == 3 else old, ISANet.from_pretrained(tmp_path))


def test_impossible_folders_and_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        random_model().save_pretrained(tmp_path / "file")
    long, null = "a" * 300, "a\x00b"
    for source in (tmp_path / "absent", "absent", "./a/b", "a/b/c", "", "a/b..c", long, null):
        with pytest.raises(InputError, match="neither a folder nor"):
            ISANet.from_pretrained(source)
    with pytest.raises(InputError, match="is a folder, which has no revision 'v1'"):
        ISANet.from_pretrained(tmp_path, revision="v1")


@pytest.mark.parametrize("path", [None, b"folder", 3, ""])
def test_paths_of_other_types_are_refused(path: Any) -> None:
    with pytest.raises(InputError, match=r"folder is .*; it must be a path"):
        random_model().save_pretrained(path)
    with pytest.raises(InputError, match="a folder"):
        ISANet.from_pretrained(path)


# Hostile files


@pytest.mark.parametrize("kind", ["fifo", "loop", "device", "folder", "huge", "no permission"])
def test_config_that_is_no_readable_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.unlink()
    if kind == "fifo":
        os.mkfifo(config)
    elif kind == "folder":
        config.mkdir()
    elif kind == "huge":
        with config.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "no permission":
        config.touch(0)
        if os.access(config, os.R_OK):
            pytest.skip("this user may read everything")
    else:
        config.symlink_to("config.json" if kind == "loop" else "/dev/zero")
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: "):
        ISANet.from_pretrained(tmp_path)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("name", sorted(FILES))
def test_save_replaces_no_file_that_it_did_not_write(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name} exists and was not written by isanet_zoo"):
        random_model().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert (tmp_path / name).read_text() == "mine"
    random_model().save_pretrained(tmp_path, force=True)
    ISANet.from_pretrained(tmp_path)


def test_save_replaces_an_edited_card(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    with (tmp_path / "README.md").open("a") as file:
        file.write("by hand!")
    random_model().save_pretrained(tmp_path)
    assert "by hand!" not in (tmp_path / "README.md").read_text()


def test_save_misspelt_fact_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="license"):
        random_model().save_pretrained(tmp_path, license="mit")  # type: ignore[call-arg]
