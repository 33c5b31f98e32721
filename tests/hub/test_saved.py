"""A network goes into a folder or to the hub and comes back the same, or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from isanet_zoo import ISANet, create_model, get_weights, predict, save_model
from isanet_zoo.errors import CheckpointError, InputError, IntegrityError
from isanet_zoo.hub import card
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.lookup import load_manifest
from isanet_zoo.manifest.weights import Metric
from isanet_zoo.weights.configs import read_config
from isanet_zoo.weights.tensors import state_digest
from tests import reference
from tests.conftest import TINY_NETWORK, TinyZoo
from tests.hub import stand_in

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
FILES = {"README.md", "config.json", "model.safetensors"}
PICTURE = reference.DATA / "pictures" / "home.jpg"
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
    """A small network none of whose numbers is a default."""
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
    """A small network of the zoo with other classes, after one step of training."""
    model = create_model("isanet_tiny", pretrained=True, num_classes=5, aux_loss=True)
    model.label_set = FRUIT
    model.train()
    optimizer = torch.optim.SGD(model.param_groups(lr=0.01))
    out, aux = model(torch.randn(2, 3, 64, 64))
    (out.square().mean() + aux.square().mean()).backward()
    optimizer.step()
    return model.eval()


def assert_same(model: ISANet, again: ISANet) -> None:
    """Check that two networks are the same in all that can be asked of them."""
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


def labels(model: ISANet) -> Segmentation:
    result = predict(model, PICTURE)
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
    """All fields of a config, at any depth."""
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from fields(value, *above, key)


def metadata(folder: Path) -> dict[str, Any]:
    """What a model card says to machines."""
    text = (folder / "README.md").read_text("utf-8")
    loaded: dict[str, Any] = stand_in.yaml.safe_load(text.split("---\n")[1])
    return loaded


# Round trips through a folder


def test_a_model_of_the_zoo_comes_back(tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    model = create_model("isanet_tiny", pretrained=True, aux_loss=True)
    assert model.save_pretrained(tmp_path / "deep" / "saved") == tmp_path / "deep" / "saved"
    assert {path.name for path in (tmp_path / "deep" / "saved").iterdir()} == FILES
    again = ISANet.from_pretrained(tmp_path / "deep" / "saved")
    assert_same(model, again)
    assert np.array_equal(labels(model).labels, labels(again).labels)
    assert again.weights == tiny_zoo.weights
    assert again.load_report.trust == "local"


def test_the_built_in_model_comes_back(tmp_path: Path) -> None:
    model = create_model(BUILT_IN, pretrained=True)
    model.save_pretrained(tmp_path)
    again = ISANet.from_pretrained(str(tmp_path))
    assert_same(model, again)
    assert np.array_equal(labels(model).labels, labels(again).labels)


def test_a_fine_tuned_model_brings_its_own_classes(
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
def test_four_channels_come_back(aux_loss: bool, tmp_path: Path) -> None:
    model = random_model(in_chans=4, aux_loss=aux_loss)
    model.save_pretrained(tmp_path)
    again = ISANet.from_pretrained(tmp_path)
    assert_same(model, again)
    images = torch.randn(2, 4, 41, 57)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))
    assert again.config.in_chans == 4
    assert (again.aux_head is None) is not aux_loss


def test_what_comes_back_can_be_trained(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    model = ISANet.from_pretrained(tmp_path).train()
    out, aux = model(torch.randn(2, 3, 32, 32))
    (out.sum() + aux.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_loading_does_not_depend_on_torch_s_defaults(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        again = ISANet.from_pretrained(tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(model, again)


def test_half_a_model_comes_back_with_its_values_as_float32(tmp_path: Path) -> None:
    model = random_model().half()
    model.save_pretrained(tmp_path)
    again = ISANet.from_pretrained(tmp_path)
    assert_same(model.float(), again)


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    for name in ("a/same", "b/same"):
        random_model().save_pretrained(tmp_path / name)
    for file in FILES:
        a, b = (tmp_path / name / "same" / file for name in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_the_saved_weights_also_work_alone(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    alone = tmp_path / "model.safetensors"
    again = create_model("isanet_tiny", weights=alone, aux_loss=True)
    assert_same(model, again)
    assert again.weights is None  # its card says that it started from nothing
    assert tiny_zoo.weights.name == "isanet_tiny"


def test_a_later_save_replaces_whole_files_and_leaves_others(tmp_path: Path) -> None:
    random_model(seed=1).save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    model = random_model(seed=2)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"notes.txt"}
    assert_same(model, ISANet.from_pretrained(tmp_path))


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    random_model().save_pretrained(tmp_path)
    expected = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in FILES} == {expected}


# What is wrong is named


def test_every_tensor_is_needed(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    for key in [*list(state)[:: len(state) // 5], "head.classifier.bias"]:
        save_file({name: state[name] for name in state if name != key}, path)
        with pytest.raises(CheckpointError, match=rf"model\.safetensors .*missing: {key}"):
            ISANet.from_pretrained(tmp_path)


def test_another_tensor_is_one_too_many(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"head.surprise": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"unknown: head\.surprise"):
        ISANet.from_pretrained(tmp_path)


def test_every_field_is_needed(tmp_path: Path) -> None:
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
        (("state_digest",), "0123", "no lower-case hex sha256"),
        (("preprocess", "mean"), [1.0], "mean has 1 items; there must be 3"),
    ],
)
def test_a_wrong_field_is_named(
    keys: tuple[str, ...], value: object, message: str, tmp_path: Path
) -> None:
    random_model().save_pretrained(tmp_path)
    edit(tmp_path, *keys, value=value)
    with pytest.raises(CheckpointError, match=message):
        ISANet.from_pretrained(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing; .*isanet_zoo saved"):
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


def test_a_pickle_in_the_weights_place_is_not_run(tmp_path: Path) -> None:
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


def test_what_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
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
def test_an_interrupted_save_leaves_no_model_that_is_another(
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


def test_places_that_cannot_be_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        random_model().save_pretrained(tmp_path / "file")
    for source in (tmp_path / "absent", "absent", "./some/where", "a/b/c", "", "org/re..po"):
        with pytest.raises(InputError, match="neither a folder nor"):
            ISANet.from_pretrained(source)
    with pytest.raises(InputError, match="is a folder, which has no revision 'v1'"):
        ISANet.from_pretrained(tmp_path, revision="v1")


# What a saved model says of itself


def test_published_weights_bring_what_was_reported(tmp_path: Path) -> None:
    create_model(BUILT_IN, pretrained=True).save_pretrained(tmp_path)
    weights = get_weights(BUILT_IN)
    said = metadata(tmp_path)
    assert said["library_name"] == "isanet_zoo"
    assert said["pipeline_tag"] == "image-segmentation"
    assert said["license"] == "cc-by-nc-4.0"
    assert said["datasets"] == ["camvid"]
    (index,) = said["model-index"]
    found = {result["dataset"]["name"]: result["metrics"] for result in index["results"]}
    assert found.keys() == {"CamVid test", "CamVid val"}
    ((metric,), _) = found.values()
    assert (metric["value"], metric["verified"]) == (weights.miou, False)
    assert metric["args"]["reported_by"] == "isanet_zoo"
    text = (tmp_path / "README.md").read_text("utf-8")
    for fact in (weights.sha256, weights.licence.dataset, "Brostow", "huang2019isa", "Bicyclist"):
        assert str(fact) in text
    assert "reproduced" not in text


def test_reported_values_name_their_source_and_are_never_called_measured(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    model = create_model("isanet_tiny", pretrained=True)
    model.save_pretrained(tmp_path)
    text, said = (tmp_path / "README.md").read_text("utf-8"), metadata(tmp_path)
    (result,) = said["model-index"][0]["results"]
    config_url = tiny_zoo.weights.links.config
    assert result["source"] == {"name": "sssegmentation", "url": config_url}
    assert result["metrics"][0]["verified"] is False
    assert "| mIoU | 76.99 |" in text
    assert "| sssegmentation | no |" in text
    sha256 = hashlib.sha256(tiny_zoo.published.read_bytes()).hexdigest()
    assert f"- Published file: {tiny_zoo.weights.sources[0]}\n- Its sha256: `{sha256}`" in text
    assert state_digest(model.state_dict()) in text


def test_further_training_leaves_the_reported_values_behind(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    same = create_model("isanet_tiny", pretrained=True)
    with torch.no_grad():
        next(same.parameters()).mul_(1.001)
    for model, folder in ((finetuned(), tmp_path / "a"), (same, tmp_path / "b")):
        model.save_pretrained(folder, dataset="Fruit train")
        text = (folder / "README.md").read_text("utf-8")
        assert "model-index" not in metadata(folder)
        assert "76.99" not in text
        assert "Made from the published weights `isanet_tiny`, trained further on Fruit" in text
        assert metadata(folder)["license"] == "apache-2.0"  # still that of what it was made from
        origin = ISANet.from_pretrained(folder).origin
        assert origin is not None
        assert origin.provenance is not None
        assert not origin.provenance.unchanged


def test_a_second_hand_model_keeps_its_history_until_it_is_trained(tmp_path: Path) -> None:
    random_model().save_pretrained(
        tmp_path / "1", dataset="Fruit train", metrics=[MEASURED], licence="mit"
    )
    model = ISANet.from_pretrained(tmp_path / "1")
    model.save_pretrained(tmp_path / "2")
    first, second = (read_config(tmp_path / n / "config.json", n) for n in "12")
    assert first == second
    assert first.metrics == (MEASURED,)
    with torch.no_grad():
        next(model.parameters()).mul_(1.001)
    model.save_pretrained(tmp_path / "3")
    third = read_config(tmp_path / "3" / "config.json", "3")
    assert (third.metrics, third.dataset, third.licence) == ((), "", "mit")


def test_a_file_s_card_goes_into_the_config(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    recipe = tiny_zoo.weights.recipe
    file = tmp_path / "best.safetensors"
    save_model(random_model(), file, dataset="Fruit train", recipe=recipe, metrics=[MEASURED])
    create_model("isanet_tiny", weights=file, aux_loss=True).save_pretrained(tmp_path / "saved")
    config = read_config(tmp_path / "saved" / "config.json", "config.json")
    assert (config.dataset, config.recipe) == ("Fruit train", recipe)
    assert config.metrics == (MEASURED,)
    assert config.provenance is None


def test_model_card_shows_use_preprocessing_and_every_class(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "fruits", metrics=[MEASURED])
    text = (tmp_path / "fruits" / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) == 5
    assert 'from_pretrained("fruits")' in code
    assert "fit 96 pixels on the longer and 64 on the shorter side" in text
    assert "BGR" in text
    assert "mean 1, 2, 3, std 9, 8, 7" in text
    assert "| 3 | plum \\| sloe | `#0000ff` | 30 |" in text
    assert "labelled 254 have no class" in text
    assert "These weights: not stated" in text
    assert "license" not in metadata(tmp_path / "fruits")


def test_use_of_the_model_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PICTURE, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    for name, in_chans in (("three", 3), ("four", 4)):
        random_model(in_chans).save_pretrained(name)
        text = Path(name, "README.md").read_text("utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        exec(code, {})


@pytest.mark.parametrize("name", list(load_manifest()))
def test_every_licence_of_the_manifest_is_understood(name: str) -> None:
    terms = get_weights(name).licence.weights
    expected = {"A": "apache-2.0", "C": "cc-by-nc-4.0", "M": "other"}[terms[0]]
    assert card.licence_id(terms) == expected
