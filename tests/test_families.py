"""Weights of all families: golden vectors, files, and the entries of the manifest."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from isanet_zoo import create_model, get_weights, list_models, predict
from isanet_zoo.commands.main import main
from isanet_zoo.errors import CheckpointError, DownloadError
from isanet_zoo.imaging.preprocess import Transforms
from isanet_zoo.manifest import lookup
from isanet_zoo.manifest.lookup import load_manifest
from isanet_zoo.manifest.weights import Weights, _log_once
from isanet_zoo.network import backbones
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.acquire import download
from isanet_zoo.weights.checkpoints import check_state, load_checkpoint, structure
from isanet_zoo.weights.convert import convert_checkpoint
from isanet_zoo.weights.description import read_description
from isanet_zoo.weights.layouts import (
    BPKD,
    COUNTER,
    MMSEG,
    OPENSEG as OPENSEG_LAYOUT,
    OPENSEG_TORCH,
    PADDLE,
)
from isanet_zoo.weights.stored import State
from isanet_zoo.weights.tensors import state_digest
from tests import reference
from tests.engines.networks import settle

CITY, VOC = "isanet_resnet50os8_cityscapes", "isanet_resnet50os8_voc"
OPENSEG = "isanet_resnet101os8_cityscapes.openseg"
SMALL = "isanet_resnet18os8_cityscapes"
BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
WITH_FILES = [  # vectors, weights, case; those of sssegmentation are in `test_zoo.py`
    ("mmseg_r50_19_a_1x3x128x160", f"{CITY}.mmseg_512x1024_40k", "a_1x3x128x160"),
    ("paddle_r50_19_a_1x3x128x160", f"{CITY}.paddle_769x769_80k", "a_1x3x128x160"),
    ("openseg_r101_19_iabn_a_1x3x128x160", OPENSEG, "a_1x3x128x160"),
    ("bpkd_r18_19_a_1x3x128x160", SMALL, "a_1x3x128x160"),
]
IN_MEMORY = [
    ("mmseg_r50_19_b_1x3x97x141", f"{CITY}.mmseg_512x1024_80k", "b_1x3x97x141"),
    ("mmseg_r50_19_sharp_b_1x3x97x141", f"{CITY}.mmseg_512x1024_80k", "b_1x3x97x141"),
    ("mmseg_r50_19_ac_a_1x3x128x160", f"{CITY}.mmseg_769x769_40k", "a_1x3x128x160"),
    ("paddle_r50_21_a_1x3x128x160", f"{VOC}.paddle_512x512_40k", "a_1x3x128x160"),
    ("bpkd_r18_59_b_1x3x97x141", "isanet_resnet18os8_pascal_context", "b_1x3x97x141"),
]
OTHERS = [  # than sssegmentation's, which are compared with its tables in `manifest/test_lookup.py`
    weights.name for weights in load_manifest().values() if weights.family not in ("ssseg", "zoo")
]
BPKD_RELEASES = "https://github.com/AkideLiu/BPKD/releases/download/"


@functools.lru_cache(1)  # tests of one network follow each other
def tensors_for_19_classes(family: str, backbone: str) -> State:
    return reference.fill(reference.shapes(family, backbone, 19))


def published_tensors(weights: Weights, *, sharp: bool = False) -> State:
    """Return the tensors of a reference checkpoint, under the names of its family."""
    backbone = weights.model.split("_")[1].removesuffix("os8")
    state = tensors_for_19_classes(weights.family, backbone)
    shapes = reference.shapes(weights.family, backbone, weights.num_classes)
    classifiers = {key: shape for key, shape in shapes.items() if state[key].shape != shape}
    state = state | reference.fill(classifiers)
    return reference.sharpen(state) if sharp else state


def assert_predicts(model: ISANet) -> None:
    """Check the labels of a small image against the network's own forward pass."""
    pad = model.preprocess.pad and (64, 80)
    model.preprocess = replace(model.preprocess, resize=None, pad=pad)
    image = np.random.default_rng(0).integers(0, 256, (40, 72, 3)).astype(np.uint8)
    segmentation = predict(model, image)
    with torch.no_grad():
        naive = model(Transforms(model.preprocess)(image))[..., :40, :72].argmax(1)[0]
    assert (segmentation.labels == naive.numpy()).mean() > 0.999  # type: ignore[union-attr]


def assert_reproduces(model: ISANet, vectors: str, case: str) -> None:
    """Check the logits of both heads and the labels against golden vectors."""
    family, _, rest = vectors.partition("_")
    expected = reference.golden(rest, family)
    images = reference.make_input(case)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        low, high = model.forward_features(images)
        patch.setattr(model, "forward_features", lambda _: (low, high))  # computed once
        assert model.aux_head is not None
        decode, aux = model.head(high), model.aux_head(low)
        labels = model(images).argmax(1)
    tolerance = 1e-4 if "sharp" in vectors else 1e-5
    np.testing.assert_allclose(decode.numpy(), expected["decode"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(aux.numpy(), expected["aux"], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(labels.numpy(), expected["full_argmax"])


@pytest.mark.parametrize(("vectors", "name", "case"), WITH_FILES)
def test_published_file_of_each_family_reproduces_golden_vectors_and_predicts(
    vectors: str, name: str, case: str, tmp_path: Path
) -> None:
    weights = get_weights(name)
    path = tmp_path / "published.any"
    reference.save(published_tensors(weights), weights.family, path)
    model = create_model(name, weights=path, aux_loss=True)
    assert model.load_report.family == weights.family
    assert model.config == weights.network
    assert model.preprocess == weights.preprocess
    assert model.label_set == weights.label_set
    assert_reproduces(model, vectors, case)
    assert_predicts(model)


@pytest.mark.parametrize(("vectors", "name", "case"), IN_MEMORY)
def test_checked_tensors_reproduce_golden_vectors(vectors: str, name: str, case: str) -> None:
    weights = get_weights(name)
    published = published_tensors(weights, sharp="sharp" in vectors)
    checkpoint = check_state(published, weights.network, name, exact=True)
    with torch.device("meta"):
        model = ISANet.from_config(weights.network, aux_loss=True).eval()
    model.load_state_dict(checkpoint.state, assign=True)
    assert_reproduces(model, vectors, case)


def test_built_in_file_loads_and_predicts() -> None:
    weights = get_weights(BUILT_IN)
    model = create_model(BUILT_IN, weights=weights.packaged)
    assert model.load_report.family == "zoo"
    assert model.preprocess == weights.preprocess
    assert model.label_set == weights.label_set
    assert_predicts(model)


def kinds() -> list[str]:
    """Return weights of each family, resize rule and kind of preprocessing."""
    found: dict[object, str] = {}
    for weights in load_manifest().values():
        preprocess, head = weights.preprocess, weights.network.head
        padded, slides = preprocess.pad is not None, preprocess.window is not None
        kind = (weights.family, head.resize, padded, slides, preprocess.order, head.activation)
        found.setdefault(kind, weights.name)
    return list(found.values())


@pytest.mark.parametrize("name", kinds())
def test_network_of_each_kind_over_a_small_encoder_predicts(name: str) -> None:
    weights = get_weights(name)
    torch.manual_seed(0)
    model = ISANet.from_config(
        replace(weights.network, backbone="test_resnet"),
        label_set=weights.label_set,
        preprocess=weights.preprocess,
    )
    settle(model)
    assert_predicts(model)


@pytest.mark.parametrize("layout", ["converted", "plain training", "distillation"])
def test_load_checkpoint_bpkd_in_each_layout_reads_the_student(layout: str, tmp_path: Path) -> None:
    """The teacher comes first in the file, and has the student's keys and shapes."""
    student = reference.fill(reference.shapes("bpkd", "resnet18", 19))
    teacher = {key: tensor + 1 for key, tensor in student.items()}
    state = student
    if layout == "distillation":
        state = {f"distiller.teacher.{key}": tensor for key, tensor in teacher.items()}
        state |= {f"architecture.model.{key}": tensor for key, tensor in student.items()}
    content: dict[str, object] = {"state_dict": state}
    if layout != "converted":
        optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []}
        content |= {"meta": {"iter": 80000, "loss": np.float32(0.5)}, "optimizer": optimizer}
    torch.save(content, tmp_path / "student.pth")
    found = load_checkpoint(tmp_path / "student.pth", get_weights(SMALL).network, exact=True)
    expected = {BPKD.ours(key): tensor for key, tensor in student.items()}
    assert state_digest(found.state) == state_digest(expected)


build_once = functools.cache(backbones.create_backbone)


@pytest.fixture
def shared_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let networks share their encoders, whose parameters are only counted."""
    monkeypatch.setattr(backbones, "create_backbone", build_once)


@pytest.mark.usefixtures("shared_encoders")
@pytest.mark.parametrize("name", list_models())
def test_create_model_builds_the_network_of_each_entry(name: str) -> None:
    weights = get_weights(name)
    with torch.device("meta"):
        models = [create_model(name, aux_loss=aux) for aux in (True, False)]
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert counts == [weights.parameters.with_aux, weights.parameters.without_aux]
    assert models[0].preprocess == weights.preprocess
    assert models[0].label_set == weights.label_set


def test_manifest_has_46_published_weights_and_the_built_in() -> None:
    families = [get_weights(name).family for name in list_models()]
    counts = {family: families.count(family) for family in families}
    assert counts == {"zoo": 1, "ssseg": 6, "mmseg": 16, "paddle": 4, "openseg": 1, "bpkd": 19}


@pytest.mark.parametrize("name", OTHERS)
def test_entry_equals_its_publisher_s_table(name: str) -> None:
    weights = get_weights(name)
    height, width = weights.crop
    thousands = int(weights.schedule.split("k")[0])
    if weights.family == "bpkd":
        return  # below
    if weights.family == "openseg":
        assert weights.sources == ()
        assert "drive.google.com" in str(weights.links.manual_mirror)
        assert weights.preprocess.order == "bgr"
        assert weights.network.head.activation == "leaky_relu"
        assert weights.network.backbone == "deepbase_resnet101"
        return
    assert weights.tag == f"{weights.family}_{height}x{width}_{thousands}k"
    assert weights.miou is not None
    assert weights.miou_multi_scale is not None
    assert weights.miou < weights.miou_multi_scale
    if weights.family == "mmseg":
        assert weights.filename.endswith(f"-{weights.sha256_prefix}.pth")
        assert [source.split("/")[2] for source in weights.sources] == [
            "mmassets.onedl.ai",
            "download.openmmlab.com",
        ]
        assert all(source.endswith(f"/{weights.filename}") for source in weights.sources)
        assert weights.trust == "verified"
        slides = height == 769
        assert weights.network.head.resize == ("corners" if slides else "half_pixel")
        assert weights.preprocess.window == ((769, 769) if slides else None)
        assert weights.protocol.mode == ("slide" if slides else "whole")
    else:
        corners = weights.dataset == "voc"
        assert weights.network.head.resize == ("corners" if corners else "asymmetric")
        assert weights.preprocess.pad == ((512, 512) if corners else (1025, 2049))
        assert weights.trust == "unverified"
        hosts = ("bj.bcebos.com/paddleseg", "paddleseg.bj.bcebos.com")
        paths = {
            s.removeprefix(f"https://{h}/") for s, h in zip(weights.sources, hosts, strict=True)
        }
        (path,) = paths
        assert path.startswith("dygraph/")


def test_bpkd_entries_equal_their_publisher_s_table() -> None:
    rows = {}
    for weights in load_manifest().values():
        if weights.family == "bpkd":
            model, metrics = weights.model.removeprefix("isanet_"), weights.metrics
            assert [metric.name for metric in metrics] == ["mIoU", "mAcc"]
            assert [metric.reproduced for metric in metrics] == [None, None]
            (source,) = weights.sources
            release, _, file = source.removeprefix(BPKD_RELEASES).partition("/")
            assert file == weights.filename
            rows[model, weights.tag] = (metrics[0].value, metrics[1].value, f"{release}/{file}")
            unknown = (weights.sha256, weights.sha256_prefix, weights.size, weights.training)
            assert unknown == (None, None, None, None)
    table = {}
    for row in (reference.DATA / "bpkd_models.tsv").read_text().splitlines():
        model, tag, miou, macc, path = row.split("\t")
        table[model, tag] = (float(miou), float(macc), path)
    assert rows == table


@pytest.mark.usefixtures("shared_encoders")
@pytest.mark.parametrize(
    ("name", "with_aux", "without_aux"),
    [
        (SMALL, 12_433_734, 12_284_915),
        ("isanet_resnet18os8_ade20k", 12_459_148, 12_301_814),
        ("isanet_resnet18os8_pascal_context", 12_441_494, 12_290_075),
        ("isanet_resnet101os8_pascal_context", 56_730_326, 54_355_355),
    ],
)
def test_bpkd_networks_have_the_published_size(name: str, with_aux: int, without_aux: int) -> None:
    with torch.device("meta"):
        models = [create_model(name, aux_loss=aux) for aux in (True, False)]
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert counts == [with_aux, without_aux]


LAYOUT = {
    "mmseg": MMSEG, "paddle": PADDLE, "openseg": OPENSEG_LAYOUT, "bpkd": BPKD,
    "openseg_torchbn": OPENSEG_TORCH,
}  # fmt: skip
OF_FAMILY = {
    "mmseg": f"{CITY}.mmseg_512x1024_40k", "paddle": f"{CITY}.paddle_769x769_80k",
    "openseg": OPENSEG, "openseg_torchbn": OPENSEG, "bpkd": SMALL,
}  # fmt: skip
Files = Callable[[str, int], Path]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """Give every published network a small encoder.

    Return a function that writes a file of a family for a number of classes.
    """
    document = json.loads(lookup.manifest_path().read_text("utf-8"))
    for model in document["models"].values():
        for entry in model["weights"].values():
            entry["network"]["backbone"] = "test_resnet"
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps(document))
    monkeypatch.setattr(lookup, "manifest_path", lambda: path)
    load_manifest.cache_clear()

    def write(family: str, num_classes: int) -> Path:
        layout = LAYOUT[family]
        network = replace(get_weights(OF_FAMILY[family]).network, num_classes=num_classes)
        shapes = {
            layout.theirs(key): spec.shape
            for key, spec in structure(network, aux_loss=True).items()
            if layout.counts or not key.endswith(COUNTER)
        }
        return reference.save(reference.fill(shapes), family, tmp_path / f"{family}.any")

    yield write
    load_manifest.cache_clear()


def test_own_checkpoint_with_other_classes_loads_under_the_bare_name(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files("mmseg", 7)
    model = create_model(VOC, weights=path, aux_loss=True)
    assert (model.load_report.family, model.config.num_classes) == ("mmseg", 7)
    assert model.config.head.fuse_kernel == 1
    assert model.weights is not None
    assert model.weights.family == "mmseg"
    assert main(["convert", str(path), str(tmp_path / "own.safetensors"), "-m", VOC]) == 0
    captured = capsys.readouterr()
    assert "mmseg" in captured.err
    assert "7 classes" in captured.err
    again = create_model(VOC, weights=tmp_path / "own.safetensors", aux_loss=True)
    assert again.config == model.config
    assert state_digest(again.state_dict()) == state_digest(model.state_dict())
    with pytest.raises(CheckpointError, match=f"was made from {VOC}, not from {CITY}"):
        create_model(CITY, weights=tmp_path / "own.safetensors")


def test_file_with_names_of_two_families_is_of_the_family_of_the_model(files: Files) -> None:
    """BPKD's files have mmsegmentation's names of tensors."""
    path = files("bpkd", 7)
    model = create_model(SMALL, weights=path, aux_loss=True)
    assert (model.load_report.family, model.config.num_classes) == ("bpkd", 7)
    assert (model.config.head.channels, model.config.head.aux_channels) == (128, 64)
    with pytest.raises(CheckpointError, match="does not hold this network's weights"):
        create_model(CITY, weights=path)


def test_own_checkpoint_has_the_preprocessing_of_the_named_tag(
    tmp_path: Path, files: Files
) -> None:
    path, name = files("mmseg", 19), f"{CITY}.mmseg_769x769_80k"
    assert create_model(CITY, weights=path).preprocess.window is None
    assert create_model(name, weights=path).preprocess.window == (769, 769)
    convert_checkpoint(path, tmp_path / "own.safetensors", name)
    description = read_description(tmp_path / "own.safetensors")
    assert description is not None
    assert description.network.head.resize == "corners"
    assert description.label_set.name == "cityscapes"
    assert create_model(CITY, weights=tmp_path / "own.safetensors").preprocess.window == (769, 769)


def test_file_of_the_authors_code_with_torch_norms_loads(files: Files) -> None:
    model = create_model(OPENSEG, weights=files("openseg_torchbn", 4), aux_loss=True)
    assert (model.config.head.activation, model.config.num_classes) == ("relu", 4)
    assert model.load_report.family == "openseg"


def test_file_of_a_family_without_the_model_is_refused(files: Files) -> None:
    with pytest.raises(CheckpointError, match="openseg, which has published no such model"):
        create_model(VOC, weights=files("openseg", 19))


def test_file_that_was_fetched_by_hand_is_found(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ISANET_ZOO_OFFLINE")
    with pytest.raises(
        DownloadError, match=r"by hand from Google Drive https://drive\.google"
    ) as caught:
        download(OPENSEG, progress=False)
    weights = get_weights(OPENSEG)
    by_hand = weights.path().parent / weights.filename
    assert str(by_hand) in str(caught.value)
    by_hand.parent.mkdir(parents=True, exist_ok=True)
    by_hand.symlink_to(files("openseg", 19))
    assert download(OPENSEG, progress=False) == weights.path()
    model = create_model(OPENSEG, pretrained=True)
    assert model.load_report.trust == "pinned"
    assert model.weights == weights


def test_non_commercial_licence_is_logged_once_and_saved_with_the_model(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _log_once.cache_clear()
    path = files("bpkd", 59)
    model = create_model("isanet_resnet18os8_pascal_context.bpkd_cwd", weights=path)
    model.save_pretrained(tmp_path / "saved")
    ISANet.from_pretrained(tmp_path / "saved")
    logged = [record.message for record in caplog.records if record.levelname == "WARNING"]
    weights = get_weights("isanet_resnet18os8_pascal_context.bpkd_cwd")
    assert logged == [f"{weights.name}: no commercial use; licence: {weights.licence.weights}"]
    card = (tmp_path / "saved" / "README.md").read_text("utf-8")
    for line in ("license: other", "- The published weights: non-commercial purposes only",
                 "Copyright (c) 2019 the authors", "* Redistributions in binary form must",
                 "@article{liu2023bpkd,"):  # fmt: skip
        assert line in card
    create_model(CITY, weights=files("mmseg", 19)).save_pretrained(tmp_path / "other")
    assert "Copyright (c) 2019" not in (tmp_path / "other" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("family", ["mmseg", "paddle", "openseg", "bpkd"])
def test_create_model_with_options_works_for_every_family(family: str, files: Files) -> None:
    name = {"openseg": OPENSEG, "bpkd": SMALL}.get(family, CITY)
    path = files(family, 19)
    model = create_model(name, weights=path, num_classes=3, aux_loss=True, in_chans=4)
    assert len(model.load_report.fresh) == 4
    assert len(model.load_report.adapted) == 1
    own = create_model(name, weights=path, classes=["pothole", "road"], aux_loss=True)
    plain = create_model(name, weights=path, aux_loss=True).state_dict()
    assert (own.load_report.kept_classes, own.load_report.new_classes) == (("road",), ("pothole",))
    for key in ("head.classifier.weight", "aux_head.classifier.bias"):
        assert torch.equal(own.state_dict()[key][1], plain[key][0])
    output = model.freeze_norm().freeze_backbone().train()(torch.zeros(2, 4, 64, 64))
    assert output.aux.shape == (2, 3, 64, 64)
    output.out.sum().backward()
    assert all(p.grad is None for p in model.backbone.parameters())


def test_tiles_of_several_images_in_one_batch_equal_one_by_one(files: Files) -> None:
    model = create_model(SMALL, weights=files("bpkd", 19))
    model.preprocess = replace(model.preprocess, resize=None, pad=None)
    images = list(np.random.default_rng(1).integers(0, 256, (2, 48, 64, 3)).astype(np.uint8))
    one_by_one = [predict(model, image, tile=40) for image in images]
    together = predict(model, images, tile=40, batch_size=2)
    for alone, batched in zip(one_by_one, together, strict=True):  # type: ignore[arg-type]
        assert (alone.labels == batched.labels).mean() > 0.999  # type: ignore[union-attr]
