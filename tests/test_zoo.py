"""create_model: logits equal to upstream's, parameter counts, strict loading, load reports."""

from __future__ import annotations

import inspect
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import isanet_zoo
from isanet_zoo import (
    CheckpointError,
    HeadConfig,
    InputError,
    ISANet,
    UnknownModelError,
    create_model,
    factories,
    get_weights,
    list_models,
    save_model,
)
from isanet_zoo.weights import checkpoints, tensors
from isanet_zoo.weights.containers import read_state
from isanet_zoo.weights.description import read_description
from isanet_zoo.weights.layouts import SSSEG
from isanet_zoo.zoo import describe_model
from tests import reference
from tests.conftest import TinyZoo

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
SIX = [
    f"isanet_resnet{depth}os8_{dataset}"
    for depth in (50, 101)
    for dataset in ("voc", "ade20k", "cityscapes")
]
PARAMETERS = {  # with the auxiliary head, as upstream's own code counts them
    "isanet_resnet50os8_voc": 44_267_402,
    "isanet_resnet50os8_ade20k": 44_399_756,
    "isanet_resnet50os8_cityscapes": 44_265_350,
    "isanet_resnet101os8_voc": 63_259_530,
    "isanet_resnet101os8_ade20k": 63_391_884,
    "isanet_resnet101os8_cityscapes": 63_257_478,
}


def both_logits(model: ISANet, images: Tensor) -> tuple[Tensor, Tensor]:
    assert model.aux_head is not None
    with torch.no_grad():
        aux_features, features = model.forward_features(images)
        return model.head(features), model.aux_head(aux_features)


def close(actual: Tensor, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=0, atol=tolerance)


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("name", reference.WITH_VECTORS)
def test_published_model_loads_and_its_logits_equal_upstreams(name: str) -> None:
    model = getattr(isanet_zoo, name)(pretrained=True, aux_loss=True)
    record = get_weights(name)
    assert not model.training
    assert model.weights is record
    assert model.label_set is record.label_set
    vectors = reference.golden(name)
    for case in ("a128x160", "b97x141"):
        logits, aux = both_logits(model, reference.make_input(case))
        close(logits, vectors[f"{case}/seg_logits"])
        close(aux, vectors[f"{case}/aux_logits"])
    shapes = reference.upstream_shapes(name)
    keys = [key for key in shapes if key.startswith(("backbone_net.stem.7.", "decoder.1."))]
    upstream = reference.fill({key: shapes[key] for key in keys})
    state = model.state_dict()
    for key in keys:
        assert torch.equal(state[SSSEG.ours(key)], upstream[key])


@pytest.mark.usefixtures("zoo")
def test_attention_and_logits_of_sharp_attention_equal_upstreams() -> None:
    name = "isanet_resnet50os8_voc"
    model = create_model(name, pretrained=True)
    head = model.head
    vectors = reference.golden("isa_block_p13x11")
    rng = np.random.Generator(np.random.PCG64(int(vectors["c4_seed"])))
    noise = rng.standard_normal(tuple(vectors["c4_shape"])).astype(np.float32)
    with torch.no_grad():
        reduced = head.reduce(torch.from_numpy(np.maximum(noise, 0)))
        context = head.attention(reduced)
        fused = head.fuse(torch.cat([context, reduced], dim=1))
    # Processors add thousands of products in different orders; the last bits differ.
    close(reduced, vectors["in_conv"], 2e-5)
    close(context, vectors["local_restored_cropped"], 2e-5)
    close(fused, vectors["out_conv"], 2e-5)
    plain = {SSSEG.theirs(key): tensor for key, tensor in model.state_dict().items()}
    model.load_state_dict(SSSEG.translate(reference.sharpen(plain)))
    with torch.no_grad():
        logits = model.forward_logits(reference.make_input("b97x141"))
    close(logits, reference.golden(f"{name}_sharp")["b97x141/seg_logits"], 1e-4)


@pytest.mark.parametrize("name", SIX)
def test_factory_of_each_of_the_six_builds_upstreams_size(name: str) -> None:
    record = get_weights(name)
    with torch.device("meta"):
        model = getattr(isanet_zoo, name)()
    aux = 1024 * 512 * 9 + 2 * 512 + (512 + 1) * record.num_classes
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == record.parameters.without_aux == PARAMETERS[name] - aux
    assert record.parameters.with_aux == PARAMETERS[name]
    assert model.label_set is record.label_set


def test_factories_have_the_names_of_the_manifest_and_one_signature() -> None:
    names = [name for name in vars(factories) if name.startswith("isanet_")]
    assert sorted(names) == [name for name in list_models() if "." not in name]
    assert {*SIX, BUILT_IN} < {*names}
    expected = list(inspect.signature(create_model).parameters.values())[1:]
    for name in names:
        signature = inspect.signature(getattr(factories, name))
        assert list(signature.parameters.values()) == expected
        assert signature.return_annotation == "ISANet"


def test_factory_builds_the_model_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        factories, "create_model", lambda *args, **options: seen.append((args, options))
    )
    options = {
        "weights": "w", "num_classes": 3, "classes": ["a", "b", "c"], "in_chans": 4,
        "aux_loss": True, "pretrained_backbone": True, "progress": False,
    }  # fmt: skip
    for name in SIX:
        getattr(factories, name)(True, **options)
        assert seen.pop() == ((name, True), options)


def test_factory_misspelt_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="num_class"):
        isanet_zoo.isanet_resnet50os8_voc(num_class=5)  # type: ignore[call-arg]


def test_factory_without_weights_opens_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISANET_ZOO_OFFLINE")
    monkeypatch.setattr(socket, "socket", forbidden)
    model = isanet_zoo.isanet_resnet50os8_voc()
    assert model.weights is None
    assert model.load_report is None
    assert model.classes[15] == "person"
    assert model.palette[15] == (192, 128, 128)


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("a socket was opened")


@pytest.fixture
def tiny(tiny_zoo: TinyZoo, monkeypatch: pytest.MonkeyPatch) -> TinyZoo:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    return tiny_zoo


def test_load_report_lists_source_trust_and_unused_tensors(tiny: TinyZoo) -> None:
    report = create_model("isanet_tiny", pretrained=True).load_report
    assert report.trust == "unverified"
    assert report.source == tiny.weights.path()
    assert report.fresh == report.adapted == ()
    assert all(key.startswith("aux_head.") for key in report.unused)
    assert len(report.unused) == 8
    assert create_model("isanet_tiny", pretrained=True).load_report.trust == "pinned"


def test_other_class_count_initialises_only_the_classifiers(
    tiny: TinyZoo, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "isanet_zoo.zoo"):
        model = create_model("isanet_tiny", pretrained=True, num_classes=7, aux_loss=True)
    classifiers = {
        f"{head}.classifier.{part}" for head in ("head", "aux_head") for part in ("weight", "bias")
    }
    assert set(model.load_report.fresh) == classifiers
    assert [record.name for record in caplog.records] == ["isanet_zoo.zoo"]
    assert all(key in caplog.text for key in classifiers)
    assert model.classes == tuple(f"class {index}" for index in range(7))
    state = model.state_dict()
    for key, tensor in tiny.state.items():
        if (ours := SSSEG.ours(key)) not in classifiers:
            assert torch.equal(state[ours], tensor), key
    assert not any(tensor.is_meta for tensor in state.values())
    assert state["head.classifier.weight"].shape == (7, 16, 1, 1)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 7, 32, 32)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("aux_loss", [True, False])
def test_classes_that_the_weights_have_keep_their_rows(aux_loss: bool) -> None:
    before = create_model("isanet_tiny", pretrained=True, aux_loss=aux_loss)
    names = ["person", "pothole", "Road", "car"]
    model = create_model("isanet_tiny", pretrained=True, classes=names, aux_loss=aux_loss)
    rows = {0: 4, 2: 1, 3: 3}
    heads = ("head", "aux_head")[: 1 + aux_loss]
    classifiers = {f"{head}.classifier.{part}" for head in heads for part in ("weight", "bias")}
    old, new = before.state_dict(), model.state_dict()
    for key in new:
        if key in classifiers:
            assert len(new[key]) == 4
            for row, source in rows.items():
                assert torch.equal(new[key][row], old[key][source]), key
        else:
            assert torch.equal(new[key], old[key]), key
    report = model.load_report
    assert (report.kept_classes, report.new_classes) == (("person", "Road", "car"), ("pothole",))
    assert (report.fresh, set(report.adapted)) == ((), classifiers)
    assert "kept classes: person, Road, car; new classes: pothole" in str(report)
    assert model.classes == tuple(names)
    assert model.palette[0] == before.palette[4]
    images = torch.randn(1, 3, 64, 64)
    logits, expected = model(images), before(images)
    torch.testing.assert_close(logits[:, [*rows]], expected[:, [*rows.values()]])


@pytest.mark.usefixtures("tiny")
def test_classes_in_another_order_are_sorted_and_all_new_ones_initialised() -> None:
    before = create_model("isanet_tiny", pretrained=True)
    names = before.classes[::-1]
    model = create_model("isanet_tiny", pretrained=True, classes=names)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(images).flip(1), before(images))
    assert model.load_report.new_classes == ()
    same = create_model("isanet_tiny", pretrained=True, classes=before.label_set)
    assert same.load_report.adapted == same.load_report.fresh == ()
    assert same.label_set is before.label_set
    other = create_model("isanet_tiny", pretrained=True, classes=["cat", "dog"])
    assert other.load_report.fresh == ("head.classifier.weight", "head.classifier.bias")
    assert (other.load_report.kept_classes, other.load_report.adapted) == ((), ())
    assert create_model("isanet_tiny", classes=["cat", "dog"]).classes == ("cat", "dog")
    for wrong in ({"classes": ["a"], "num_classes": 1}, {"classes": ["a", "a"]}, {"classes": "a"}):
        with pytest.raises(InputError):
            create_model("isanet_tiny", pretrained=True, **wrong)


@pytest.mark.usefixtures("tiny")
def test_loading_is_independent_of_torchs_defaults() -> None:
    plain = create_model("isanet_tiny", pretrained=True).state_dict()
    checkpoints._skeleton.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            model = create_model("isanet_tiny", pretrained=True, num_classes=3, aux_loss=True)
    finally:
        torch.set_default_dtype(torch.float32)
    state = model.state_dict()
    assert not any(tensor.is_meta or tensor.dtype == torch.float64 for tensor in state.values())
    for key in plain.keys() - set(model.load_report.fresh):
        assert torch.equal(state[key], plain[key]), key


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_channel_count_adapts_the_first_convolution_as_timm(in_chans: int) -> None:
    from timm.models import adapt_input_conv

    rgb = create_model("isanet_tiny", pretrained=True).state_dict()
    model = create_model("isanet_tiny", pretrained=True, in_chans=in_chans)
    (stem,) = model.load_report.adapted
    assert stem == "backbone.conv1.0.weight"
    assert torch.equal(model.state_dict()[stem], adapt_input_conv(in_chans, rgb[stem]))
    assert model(torch.randn(1, in_chans, 32, 32)).shape == (1, 5, 32, 32)


@pytest.mark.usefixtures("tiny")
def test_loaded_model_can_be_trained() -> None:
    model = create_model("isanet_tiny", pretrained=True, aux_loss=True).train()
    before = model.state_dict()["backbone.conv1.0.weight"].clone()
    optimiser = torch.optim.SGD(model.param_groups(0.1))
    output = model(torch.randn(2, 3, 32, 32))
    (output.out.square().mean() + output.aux.square().mean()).backward()
    optimiser.step()
    assert not torch.equal(model.state_dict()["backbone.conv1.0.weight"], before)
    again = create_model("isanet_tiny", pretrained=True)
    assert torch.equal(again.state_dict()["backbone.conv1.0.weight"], before)


def test_weights_file_of_another_class_count_loads(tiny: TinyZoo, tmp_path: Path) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in tiny.state.items()}
    shapes |= {"decoder.1.weight": (9, 16, 1, 1), "decoder.1.bias": (9,)}
    shapes |= {"auxiliary_decoder.4.weight": (9, 12, 1, 1), "auxiliary_decoder.4.bias": (9,)}
    torch.save({"epoch": 3, "model": reference.fill(shapes)}, tmp_path / "own.pth")
    model = create_model("isanet_tiny", weights=tmp_path / "own.pth")
    assert model.config.num_classes == 9
    assert model.load_report.fresh == ()
    assert model.load_report.trust == "local"
    assert create_model(
        "isanet_tiny", weights=tmp_path / "own.pth", num_classes=2
    ).load_report.fresh


def test_weights_file_with_too_many_classes_is_refused(tiny: TinyZoo, tmp_path: Path) -> None:
    state = tiny.state | {"decoder.1.weight": torch.zeros(5000, 16, 1, 1)}
    torch.save({"model": state}, tmp_path / "own.pth")
    with pytest.raises(CheckpointError, match=r"own\.pth: num_classes is 5000; it must be"):
        create_model("isanet_tiny", weights=tmp_path / "own.pth")


def test_weights_file_without_auxiliary_head_loads_without_it(
    tiny: TinyZoo, tmp_path: Path
) -> None:
    own = tmp_path / "own.safetensors"
    tensors.save_state(create_model("isanet_tiny", pretrained=True).state_dict(), own)
    assert create_model("isanet_tiny", weights=str(own)).load_report.unused == ()
    with pytest.raises(CheckpointError, match="no auxiliary head"):
        create_model("isanet_tiny", weights=own, aux_loss=True)


@pytest.mark.usefixtures("tiny")
def test_weights_may_be_a_tag() -> None:
    by_tag = create_model("isanet_tiny", weights="ssseg")
    assert by_tag.weights is get_weights("isanet_tiny") is get_weights("isanet_tiny.ssseg")
    assert create_model("isanet_tiny", weights="isanet_tiny.ssseg").weights is by_tag.weights
    assert torch.equal(
        by_tag.state_dict()["head.classifier.weight"],
        create_model("isanet_tiny.ssseg", pretrained=True).state_dict()["head.classifier.weight"],
    )


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pretrained": True, "weights": "ssseg"}, InputError, "both select weights"),
        ({"pretrained": True, "pretrained_backbone": True}, InputError, "encoder only"),
        ({"weights": "mmseg_80k"}, UnknownModelError, "which has ssseg"),
        ({"weights": "nowhere.pth"}, InputError, "'nowhere.pth': there is no such file"),
        ({"weights": Path("ssseg")}, InputError, "'ssseg': there is no such file"),
        ({"pretrained": "ssseg"}, InputError, "pretrained is 'ssseg'; it must be True or False"),
        ({"num_classes": "5"}, InputError, "num_classes is '5'"),
        ({"num_classes": 0}, InputError, "num_classes is 0"),
        (
            {"num_classes": 10**12},
            InputError,
            "num_classes is 1000000000000; it must be .* to 4096",
        ),
        ({"in_chans": 10**9}, InputError, "in_chans is 1000000000; it must be .* to 1024"),
        ({"pretrained": True, "num_classes": 10**12}, InputError, "num_classes is 1000000000000"),
        ({"weights": ""}, InputError, "weights is empty; it must be a tag, a path or a repository"),
        ({"aux_loss": "no"}, InputError, "aux_loss is 'no'; it must be True or False"),
        ({"weights": b"ssseg"}, InputError, "weights is a bytes; it must be a tag, a path"),
        ({"weights": 3}, InputError, "weights is a int; it must be a tag, a path"),
        ({"weights": " ssseg"}, UnknownModelError, "which has ssseg"),
        ({"weights": Path()}, CheckpointError, r"config\.json is missing"),
        ({"weights": "~nosuchuser/a.pth"}, InputError, "there is no such file"),
        ({"weights": "a\x00.pth"}, InputError, "there is no such file"),
        ({"weights": "a" * 300 + ".pth"}, InputError, "there is no such file"),
        (
            {"weights": "/dev/zero"},
            CheckpointError,
            "/dev/zero cannot be read: it is not a regular file",
        ),
    ],
)
def test_create_model_wrong_arguments_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        create_model("isanet_tiny", **options)


@pytest.mark.parametrize("name", [None, b"isanet_tiny", Path("isanet_tiny"), 3, ["isanet_tiny"]])
def test_create_model_name_that_is_no_string_is_refused(name: Any) -> None:
    with pytest.raises(InputError, match=r"name is a \w+; it must be a string, see list_models"):
        create_model(name)


def test_create_model_unknown_name_has_a_suggestion() -> None:
    with pytest.raises(UnknownModelError, match="did you mean isanet_resnet50os8_voc"):
        create_model("isanet_resnet50_voc")


def test_create_model_from_files_and_folders_that_describe_themselves(tmp_path: Path) -> None:
    name = "isanet_efficientnet_lite0os8_camvid"
    model = create_model(name, pretrained=True)
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "best.safetensors"
    shutil.copy(tmp_path / "saved" / "model.safetensors", file)
    expected = tensors.state_digest(model.state_dict())
    for path in (file, tmp_path / "saved", tmp_path / "run"):
        for loaded in (create_model(str(path), True), create_model(name, weights=path)):
            assert tensors.state_digest(loaded.state_dict()) == expected
            assert loaded.label_set == model.label_set
            assert not loaded.training
    with pytest.raises(CheckpointError, match="was made from isanet_efficientnet"):
        create_model("isanet_resnet50os8_voc", weights=file)
    other = ISANet("test_resnet", 5, head=HeadConfig(channels=8, key_channels=8))
    save_model(other, tmp_path / "other.safetensors")
    assert create_model(str(tmp_path / "other.safetensors"), True).config == other.config
    with pytest.raises(CheckpointError, match="is for the encoder test_resnet, isanet_resnet50os8"):
        create_model("isanet_resnet50os8_voc", weights=tmp_path / "other.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "foreign.pth")
    with pytest.raises(InputError, match="does not describe its network; pass it as weights, with"):
        create_model(str(tmp_path / "foreign.pth"), True)


@pytest.mark.usefixtures("tiny")
def test_pretrained_backbone_may_be_a_file(tmp_path: Path) -> None:
    source = create_model("isanet_tiny").backbone.state_dict()
    torch.save({"state_dict": source | {"fc.weight": torch.ones(2)}}, tmp_path / "encoder.pth")
    for path in (tmp_path / "encoder.pth", str(tmp_path / "encoder.pth")):
        model = create_model("isanet_tiny", num_classes=3, pretrained_backbone=path)
        for key, tensor in model.backbone.state_dict().items():
            assert torch.equal(tensor, source[key]), key
    for wrong, error in (
        (tmp_path / "nothing.pth", CheckpointError),
        ("https://example.org/encoder.pth", InputError),
        ("", InputError),
        (1, InputError),
    ):
        with pytest.raises(error):
            create_model("isanet_tiny", pretrained_backbone=wrong)  # type: ignore[arg-type]


def test_describe_model_is_what_create_model_loads(tmp_path: Path) -> None:
    model = create_model("isanet_efficientnet_lite0os8_camvid", pretrained=True)
    folder = model.save_pretrained(tmp_path / "saved")
    for path in (folder, folder / "model.safetensors"):
        assert describe_model(str(path)) == create_model(str(path), pretrained=True).origin
    assert describe_model("isanet_efficientnet_lite0os8_camvid") == model.origin
    for name in ("isanet_resnet50_voc", str(tmp_path / "nothing.pth"), "http://a/b.pth"):
        with pytest.raises((UnknownModelError, InputError)):
            describe_model(name)


def test_create_model_from_a_url_is_refused() -> None:
    url = "https://example.org/a.pth"
    with pytest.raises(InputError, match="is a URL; download the file and pass its path"):
        create_model(url, True)
    with pytest.raises(InputError, match="is a URL; download the file and pass its path"):
        create_model("isanet_resnet50os8_voc", weights=url)


def test_create_model_from_a_file_whose_description_differs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    isanet_zoo.save_model(ISANet("test_resnet", num_classes=5), path)
    other = read_description(path)
    assert other is not None
    network = replace(other.network, num_classes=7)
    label_set = isanet_zoo.LabelSet.generic(7)
    text = replace(other, network=network, label_set=label_set).text()
    tensors.save_state(read_state(path, "own"), path, description=text)
    with pytest.raises(CheckpointError, match=r"for 5 classes .* description has 7"):
        create_model(str(path), pretrained=True)
