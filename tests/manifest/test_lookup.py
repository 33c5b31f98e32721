"""The published manifest, compared with its publishers' tables and with the networks."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

import isanet_zoo
from isanet_zoo.errors import InputError, ManifestError, UnknownModelError
from isanet_zoo.manifest import lookup
from isanet_zoo.manifest.lookup import get_weights, list_models, load_manifest
from isanet_zoo.manifest.weights import _log_once
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights import checkpoints
from tests.reference import DATA

DOCUMENT: dict[str, Any] = json.loads(lookup.manifest_path().read_text("utf-8"))
PUBLISHED: dict[str, Any] = json.loads(  # from the publisher's tables and configs
    (DATA / "ssseg_models.json").read_text("utf-8")
)
NAMES = list(PUBLISHED["models"])
BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
BPKD = [  # BPKD's models
    *(f"isanet_resnet18os8_{dataset}" for dataset in ("cityscapes", "ade20k", "pascal_context")),
    "isanet_resnet101os8_pascal_context",
]


ENTRY = ("models", "isanet_resnet50os8_voc", "weights", "ssseg")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("sha256",), 3, r"sha256 is 3; it must be a string"),
        (("sha256",), "ab", r"sha256 is 'ab'; it must be a lower-case hex sha256"),
        (("surprise",), 1, "unknown surprise"),
        (("network", "head", "fuse_kernel"), 5, r"network\.head\.fuse_kernel is 5"),
        (("network", "num_classes"), 20, r"network\.num_classes: 20, but voc has 21"),
        (("preprocess", "mean"), [1.0], r"preprocess\.mean has 1 items; there must be 3"),
        (("preprocess", "std"), [1, 1, 0], r"preprocess\.std\[2\] is 0; it must be a number from"),
        (("family",), "caffe", r"family is 'caffe'; it must be one of 'ssseg', 'mmseg'"),
        (("metrics",), [{"name": "mIoU"}], r"metrics\[0\]: missing flip, protocol"),
        (("dataset",), "pets", r"dataset: 'pets' is none of voc"),
        (("hub",), "here", r"hub is 'here'; it must be an object"),
    ],
)
def test_load_manifest_wrong_entry_is_refused_with_its_address(
    keys: tuple[str, ...], value: object, message: str, tmp_path: Path
) -> None:
    document = copy.deepcopy(DOCUMENT)
    place = document
    for key in (*ENTRY, *keys[:-1]):
        place = place[key]
    place[keys[-1]] = value
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match=rf"^{re.escape('.'.join(ENTRY))}[.:] ?{message}"):
        load_manifest(path)


def test_document_has_the_format_of_pinning() -> None:
    text = lookup.manifest_path().read_text("utf-8")
    assert text == json.dumps(DOCUMENT, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", [*NAMES, BUILT_IN])
def test_entry_agrees_with_the_architecture(name: str) -> None:
    weights = get_weights(name)
    assert weights.structure_digest == checkpoints.structure_digest(weights.network)
    specs = checkpoints.structure(weights.network, aux_loss=True)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    counts = {key: 1 for key in specs if not key.endswith(statistics)}
    for key in counts:
        for side in specs[key].shape:
            counts[key] *= side
    assert weights.parameters.with_aux == sum(counts.values())
    aux = sum(count for key, count in counts.items() if key.startswith("aux_head."))
    assert weights.parameters.without_aux == sum(counts.values()) - aux
    assert Path(weights.filename).stem == name
    assert all(re.split("[/:]", source)[-1] == weights.filename for source in weights.sources)


@pytest.mark.parametrize("name", NAMES)
def test_entry_agrees_with_the_publishers_table(name: str) -> None:
    weights, row = get_weights(name), PUBLISHED["models"][name]
    assert weights.sources == (row["model_url"],)
    assert weights.links.former_url == row["former_url"]
    assert weights.links.config == row["cfg_url"]
    assert weights.links.log == row["log_url"]
    assert weights.links.manual_mirror == PUBLISHED["mirror"]
    assert weights.links.code == PUBLISHED["code"]
    assert weights.pretraining == PUBLISHED["pretraining"]
    (metric,) = weights.metrics
    assert (metric.name, metric.value, metric.reproduced) == ("mIoU", row["miou"], None)


@pytest.mark.parametrize("name", NAMES)
def test_entry_agrees_with_the_publishers_recipe(name: str) -> None:
    _, backbone, dataset = name.split("_")
    row = PUBLISHED["models"][name]
    assert DOCUMENT["models"][name]["weights"]["ssseg"]["training"] == PUBLISHED["recipe"] | {
        "split": row["train_set"],
        "epochs": row["epochs"],
        "batch_size": row["batch_size"],
        "crop": row["crop"],
        "base_size": PUBLISHED["base_size"][dataset],
        "lr": row["lr"],
        "initialisation": PUBLISHED["initialisation"][backbone.removesuffix("os8")],
        # What sssegmentation does not do.
        "head_multiplier": 1.0,
        "class_weights": None,
        "ema": None,
        "precision": "float32",
        "frozen": [],
    }


def test_label_sets_agree_with_the_publishers() -> None:
    """Compare sha256 over a line ``name TAB #rrggbb TAB id`` per class, in the network's order."""
    digests = {}
    for name, labels in DOCUMENT["label_sets"].items():
        rows = zip(labels["names"], labels["palette"], labels["official_ids"], strict=True)
        lines = "".join(f"{title}\t{colour}\t{number}\n" for title, colour, number in rows)
        digests[name] = hashlib.sha256(lines.encode()).hexdigest()
    del digests["camvid"], digests["pascal_context"]  # other publishers', below
    assert digests == PUBLISHED["label_sets"]


def test_commercial_use_is_what_the_licence_of_the_weights_states() -> None:
    allowed = {"ssseg": True, "mmseg": True, "paddle": True, "openseg": True}
    for weights in load_manifest().values():
        assert weights.commercial_use is allowed.get(weights.family, False)
        restricted = re.search("non-commercial|BY-NC", weights.licence.weights)
        assert weights.commercial_use is not bool(restricted)


def test_log_terms_is_logged_once_for_weights_without_commercial_use(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _log_once.cache_clear()
    for name in ("isanet_resnet18os8_ade20k", NAMES[0], BUILT_IN, "isanet_resnet18os8_ade20k"):
        get_weights(name).log_terms()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("isanet_resnet18os8_ade20k: no commercial use; licence: non-")


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("isanet_resnet50os8_voc.mmseg_512x512_20k", "isanet_resnet50os8_voc"),
        ("isanet_resnet18os8_ade20k.bpkd_cwd", "isanet_resnet50os8_ade20k"),
        ("isanet_resnet101os8_pascal_context", "isanet_resnet50os8_voc"),
    ],
)
def test_recipe_that_is_not_known_is_that_of_the_closest_weights(
    name: str, closest: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights, other = get_weights(name), get_weights(closest)
    assert other.training is not None
    expected = other.training
    if weights.model != other.model:
        assert weights.pretraining is not None
        expected = dataclasses.replace(expected, initialisation=weights.pretraining)
    assert weights.recipe == expected
    messages = [f"{name} has no published recipe; using that of {closest}"]
    assert caplog.messages == ([] if weights.model == other.model else messages)


def test_teacher_is_stated_for_distilled_weights_only() -> None:
    weights = get_weights("isanet_resnet18os8_ade20k")
    assert weights.method == "BPKD"
    assert get_weights("isanet_resnet18os8_ade20k.bpkd_plain").teacher is None
    with pytest.raises(InputError, match="method is plain, teacher is mmseg"):
        dataclasses.replace(weights, method="plain")


def test_pascal_context_has_alphabetical_classes_and_colours_of_ade20k() -> None:
    """mmsegmentation's order is not that of the data set's own `59_labels.txt`."""
    labels, ade20k = (
        get_weights(f"isanet_resnet18os8_{name}").label_set for name in ("pascal_context", "ade20k")
    )
    assert len(labels) == 59
    assert list(labels.names) == sorted(labels.names)
    assert labels.names[::14] == ("aeroplane", "cat", "grass", "sheep", "water")
    assert labels.palette == ade20k.palette[1:60]
    assert labels.official_ids == tuple(range(1, 60))
    assert labels.ignore_index == 255


def test_camvid_agrees_with_its_distribution() -> None:
    labels = get_weights(BUILT_IN).label_set
    table = """Sky (128,128,128), Building (128,0,0), Pole (192,192,128), Road (128,64,128),
        Pavement (60,40,222), Tree (128,128,0), SignSymbol (192,128,128), Fence (64,64,128),
        Car (64,0,128), Pedestrian (64,64,0), Bicyclist (0,128,192)"""
    rows = re.findall(r"(\w+) \((\d+),(\d+),(\d+)\)", table)
    assert labels.names == tuple(name for name, *_ in rows)
    assert labels.colours == tuple((int(r), int(g), int(b)) for _, r, g, b in rows)
    assert labels.official_ids == tuple(range(11))


@pytest.mark.parametrize("name", NAMES)
def test_facts_that_were_not_published_are_null(name: str) -> None:
    weights = get_weights(name)
    unknown = (weights.sha256, weights.sha256_prefix, weights.size, weights.state_digest)
    assert unknown == (None, None, None, None)
    assert weights.trust == "unverified"


def test_list_models_filters_by_pattern_data_set_and_encoder() -> None:
    everything = list_models()
    assert everything == sorted(everything)
    assert {name for name in everything if "." not in name} == {*NAMES, *BPKD, BUILT_IN}
    assert list_models("*resnet101*", dataset="voc") == [
        "isanet_resnet101os8_voc",
        "isanet_resnet101os8_voc.mmseg_512x512_20k",
        "isanet_resnet101os8_voc.mmseg_512x512_40k",
        "isanet_resnet101os8_voc.paddle_512x512_40k",
    ]
    assert list_models(backbone="resnet50_vd") == [
        "isanet_resnet50os8_cityscapes.paddle_769x769_80k",
        "isanet_resnet50os8_voc.paddle_512x512_40k",
    ]
    assert list_models(dataset="camvid") == [BUILT_IN]
    assert list_models(dataset="pets") == []


def test_get_weights_accepts_the_tag_of_the_default() -> None:
    assert get_weights("isanet_resnet50os8_voc.ssseg") is get_weights("isanet_resnet50os8_voc")
    with pytest.raises(UnknownModelError, match="did you mean"):
        get_weights("isanet_resnet50os8_voc.mmseg")


@pytest.mark.parametrize("name", [None, b"isanet_resnet50os8_voc", Path("voc"), 3])
def test_get_weights_name_that_is_no_string_is_refused(name: Any) -> None:
    with pytest.raises(InputError, match=r"name is a .*; it must be a string, see list_models"):
        get_weights(name)


@pytest.mark.parametrize("name", ["", " ", "isanet resnet50os8 voc", "\x1b[2J"])
def test_get_weights_unknown_name_is_shown_escaped(name: str) -> None:
    with pytest.raises(UnknownModelError, match=r"no model is called '.*'; ") as caught:
        get_weights(name)
    assert str(caught.value).isprintable()


def test_network_has_the_label_set_it_was_built_with() -> None:
    ade, city = (get_weights(f"isanet_resnet50os8_{name}") for name in ("ade20k", "cityscapes"))
    assert ade.label_set.official_ids == tuple(range(1, 151))
    assert city.label_set.official_ids[:3] == (7, 8, 11)
    assert city.label_set.colours[0] == (128, 64, 128)
    assert ade.label_set.short_name(1) == "building"
    model = ISANet("test_resnet", 19, label_set=city.label_set)
    assert model.classes[13] == "car"
    assert model.palette[13] == (0, 0, 142)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "is a list; it must be an object"),
        ("{}", "label_sets, models"),
        ('{"label_sets": {}}', "models"),
    ],
)
def test_load_manifest_broken_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        load_manifest(path)


def test_weights_have_path_and_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISANET_ZOO_CACHE", "/some/where")
    weights = isanet_zoo.get_weights("isanet_resnet50os8_voc")
    assert weights.path() == Path("/some/where/isanet_resnet50os8_voc/model.safetensors")
    assert weights.transforms().config is weights.preprocess
