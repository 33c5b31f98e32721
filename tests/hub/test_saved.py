"""Saved models: round trips through a folder, and folders that are refused."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from isanet_zoo import ISANet, create_model, predict
from isanet_zoo.errors import CheckpointError, InputError, IntegrityError
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.weights import Metric
from isanet_zoo.weights.description import Description
from tests import reference
from tests.conftest import TINY_NETWORK, TinyZoo

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
FILES = {"README.md", "config.json", "model.safetensors"}
IMAGE = reference.DATA / "pictures" / "home.jpg"
FRUIT = LabelSet(
    "fruit",
    "Fruit of a market",
    ("background", "apple, malus", "pear", "plum | sloe", "quince"),
    ("#000000", "#ff0000", "#00ff00", "#0000ff", "#ffff00"),
    (0, 10, 20, 30, 40),
    ignore_index=254,
)
MEASURED = Metric("mIoU", 51.5, "Fruit val", (1.0,), False, "whole", "somebody", None)


def random_model(in_chans: int = 3, *, aux_loss: bool = True, seed: int = 0) -> ISANet:
    """Return a small network whose numbers differ from the defaults."""
    torch.manual_seed(seed)
    model = ISANet(
        TINY_NETWORK.backbone,
        5,
        in_chans=in_chans,
        aux_loss=aux_loss,
        head=replace(TINY_NETWORK.head, fuse_kernel=1, value_bias=True, activation="leaky_relu"),
        label_set=FRUIT,
        preprocess=Preprocess(resize=(96, 64), mean=(1.0, 2.0, 3.0), std=(9, 8, 7), order="bgr"),
    )
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return model.eval()


def finetuned() -> ISANet:
    """Return a small network of the zoo with other classes, after one step of training."""
    model = create_model("isanet_tiny", pretrained=True, num_classes=5, aux_loss=True)
    model.label_set = FRUIT
    model.train()
    optimizer = torch.optim.SGD(model.param_groups(lr=0.01))
    out, aux = model(torch.randn(2, 3, 64, 64))
    (out.square().mean() + aux.square().mean()).backward()
    optimizer.step()
    return model.eval()


def assert_same(model: ISANet, again: ISANet) -> None:
    """Check that two networks have equal tensors, classes and preprocessing."""
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype, key
        assert torch.equal(tensor, after[key]), key
    assert again.config == model.config
    assert again.label_set == model.label_set
    assert (again.classes, again.palette) == (model.classes, model.palette)
    assert again.preprocess == model.preprocess
    assert not any(module.training for module in again.modules())
    assert not any(parameter.is_meta for parameter in again.parameters())


def read_config(folder: Path) -> Description:
    return Description.parse((folder / "config.json").read_text("utf-8"), "config.json")


def labels(model: ISANet) -> Segmentation:
    result = predict(model, IMAGE)
    assert isinstance(result, Segmentation)
    return result


def edit(folder: Path, *keys: str, value: Any = None) -> None:
    """Change a field of a saved config; without a value, delete it."""
    path = folder / "config.json"
    document = place = json.loads(path.read_text("utf-8"))
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(document), "utf-8")


def fields(tree: dict[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    """Yield the fields of a config, at any depth."""
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from fields(value, *above, key)


# Round trips through a folder


def test_round_trip_of_a_published_model_keeps_everything(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    model = create_model("isanet_tiny", pretrained=True, aux_loss=True)
    assert model.save_pretrained(tmp_path / "deep" / "saved") == tmp_path / "deep" / "saved"
    assert {path.name for path in (tmp_path / "deep" / "saved").iterdir()} == FILES
    again = ISANet.from_pretrained(tmp_path / "deep" / "saved")
    assert_same(model, again)
    assert np.array_equal(labels(model).labels, labels(again).labels)
    assert again.weights == tiny_zoo.weights
    assert again.load_report.trust == "local"


def test_round_trip_of_the_built_in_model_keeps_labels(tmp_path: Path) -> None:
    model = create_model(BUILT_IN, pretrained=True)
    model.save_pretrained(tmp_path)
    again = ISANet.from_pretrained(str(tmp_path))
    assert_same(model, again)
    assert np.array_equal(labels(model).labels, labels(again).labels)


def test_round_trip_of_a_fine_tuned_model_keeps_its_classes(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    model = finetuned()
    model.save_pretrained(tmp_path, dataset="Fruit train", metrics=[MEASURED])
    again = ISANet.from_pretrained(tmp_path)
    assert_same(model, again)
    before, after = labels(model), labels(again)
    assert np.array_equal(before.labels, after.labels)
    assert after.label_set == FRUIT
    assert after.mask("apple").shape == after.labels.shape
    assert after.to_image().getpalette()[:15] == [c for rgb in FRUIT.colours for c in rgb]  # type: ignore[index]


@pytest.mark.parametrize("aux_loss", [False, True])
def test_round_trip_keeps_four_channels_and_the_auxiliary_head(
    aux_loss: bool, tmp_path: Path
) -> None:
    model = random_model(in_chans=4, aux_loss=aux_loss)
    model.save_pretrained(tmp_path)
    again = ISANet.from_pretrained(tmp_path)
    assert_same(model, again)
    images = torch.randn(2, 4, 41, 57)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))
    assert again.config.in_chans == 4
    assert (again.aux_head is None) is not aux_loss


def test_loaded_model_can_be_trained(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    model = ISANet.from_pretrained(tmp_path).train()
    out, aux = model(torch.randn(2, 3, 32, 32))
    (out.sum() + aux.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_loading_is_independent_of_torchs_default_type(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        again = ISANet.from_pretrained(tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(model, again)


def test_round_trip_of_float16_gives_float32(tmp_path: Path) -> None:
    model = random_model().half()
    model.save_pretrained(tmp_path)
    again = ISANet.from_pretrained(tmp_path)
    assert_same(model.float(), again)


def test_equal_models_are_saved_as_equal_files(tmp_path: Path) -> None:
    for name in ("a/same", "b/same"):
        random_model().save_pretrained(tmp_path / name)
    for file in FILES:
        a, b = (tmp_path / name / "same" / file for name in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_saved_weights_load_without_their_folder(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    alone = tmp_path / "model.safetensors"
    again = create_model("isanet_tiny", weights=alone, aux_loss=True)
    assert_same(model, again)
    assert again.weights is None  # it did not start from published weights
    assert tiny_zoo.weights.name == "isanet_tiny"


def test_later_save_replaces_its_files_and_keeps_others(tmp_path: Path) -> None:
    random_model(seed=1).save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    model = random_model(seed=2)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"notes.txt"}
    assert_same(model, ISANet.from_pretrained(tmp_path))


def test_saved_files_have_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    random_model().save_pretrained(tmp_path)
    expected = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in FILES} == {expected}


# Refusals


def test_missing_tensor_is_refused(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
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
    for source in (tmp_path / "absent", "absent", "./some/where", "a/b/c", "", "org/re..po"):
        with pytest.raises(InputError, match="neither a folder nor"):
            ISANet.from_pretrained(source)
    with pytest.raises(InputError, match="is a folder, which has no revision 'v1'"):
        ISANet.from_pretrained(tmp_path, revision="v1")


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
