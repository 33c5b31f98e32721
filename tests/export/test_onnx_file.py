"""Tests of exported files against the networks that they were exported from."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import isanet_zoo
from isanet_zoo import (
    EnvironmentProblem,
    ISANet,
    LabelSet,
    Preprocess,
    UnknownModelError,
    create_model,
    export_onnx,
    get_weights,
)
from isanet_zoo.export import onnx_file
from isanet_zoo.weights.saving import describe
from tests import reference
from tests.conftest import TinyZoo
from tests.export.networks import FIXED, read_description, run, shallow, small

ROOT = Path(isanet_zoo.__file__).parents[1]
CITY = "isanet_resnet50os8_cityscapes"
SHAPES = (
    *((2, 3, 100, 140), (1, 3, 97, 141), (1, 3, 256, 341), (3, 3, 64, 200)),
    *((1, 3, 64, 64), (2, 3, 9, 70), (1, 3, 1, 1)),
)

# The exporter uses functions of Python and torch that are deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@torch.no_grad()
def assert_same_logits(model: ISANet, path: Path, shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    expected = model(images)
    found = torch.from_numpy(run(path, images))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4
    best = expected.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 1e-3
    assert clear.float().mean() > 0.9
    assert torch.equal(found.argmax(1)[clear], expected.argmax(1)[clear])
    if min(shape[2:]) >= 64:  # smaller outputs hardly vary
        assert expected.std((2, 3)).mean() > 0.01


@pytest.fixture(scope="module")
def shallow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for all sizes; the engines' tests use one of a whole network."""
    return export_onnx(shallow(), tmp_path_factory.mktemp("export") / "shallow.onnx")


@pytest.mark.parametrize("shape", SHAPES)
def test_dynamic_file_returns_the_logits_at_every_size(
    shape: tuple[int, ...], shallow_file: Path
) -> None:
    assert_same_logits(shallow(), shallow_file, shape)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (f"{CITY}.mmseg_769x769_80k", "corners"),
        (f"{CITY}.paddle_769x769_80k", "asymmetric"),
    ],
)
def test_dynamic_file_of_another_family_returns_the_logits_at_every_size(
    name: str, rule: str, tmp_path: Path
) -> None:
    network = get_weights(name).network
    assert network.head.resize == rule
    model = shallow(head=replace(network.head, channels=16, key_channels=8))
    path = export_onnx(model, tmp_path / "model.onnx", check=False)
    for shape in SHAPES:
        assert_same_logits(model, path, shape)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[ISANet, Path]:
    """A network in training mode, and its file for one size in half precision."""
    model = small(aux_loss=True).train()
    path = tmp_path_factory.mktemp("export") / "half.onnx"
    return model, export_onnx(model, path, **FIXED, dtype=torch.float16)


def test_static_file_supports_its_size_alone(half: tuple[ISANet, Path]) -> None:
    assert run(half[1], torch.zeros(1, 3, 97, 130)).shape == (1, 5, 97, 130)
    with pytest.raises(Exception, match="Got invalid dimensions"):
        run(half[1], torch.zeros(1, 3, 100, 130))


def test_file_in_half_precision_has_half_the_size_and_float32_logits(
    half: tuple[ISANet, Path],
) -> None:
    model, path = small(aux_loss=True), half[1]
    weights = onnx.load(path).graph.initializer
    large = [weight for weight in weights if np.prod(weight.dims) > 100]
    assert {weight.data_type for weight in large} == {onnx.TensorProto.FLOAT16}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert path.stat().st_size < 3 * parameters
    images = torch.randn(1, 3, 97, 130)
    found, expected = run(path, images), model(images).detach().numpy()
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_export_leaves_the_network_unchanged(half: tuple[ISANet, Path]) -> None:
    model, before = half[0], small(aux_loss=True).state_dict()
    assert model.training
    assert model.aux_head is not None
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert list(model.state_dict()) == list(before)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_file_with_preprocessing_returns_labels_of_pixels(tmp_path: Path) -> None:
    model = shallow(
        preprocess=Preprocess(order="bgr", mean=(90.0, 100.0, 110.0), std=(50.0, 50.0, 50.0))
    )
    path = export_onnx(model, tmp_path / "model.onnx", **FIXED, output="labels", preprocess=True)
    pixels = torch.randint(0, 256, (1, 3, 97, 130), dtype=torch.uint8)
    found = run(path, pixels)
    assert found.dtype == np.uint8
    assert found.shape == (1, 97, 130)
    bgr = (pixels.flip(1) - torch.tensor([110.0, 100.0, 90.0]).view(3, 1, 1)) / 50
    with torch.no_grad():
        expected = model(bgr).argmax(1).numpy()
    assert np.mean(found != expected) < 1e-3  # near-ties
    assert len(np.unique(found)) > 1


@pytest.fixture
def no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export an empty graph, which is quick."""
    monkeypatch.setattr(onnx_file, "trace", lambda *_: onnx.ModelProto(ir_version=10))


@pytest.mark.usefixtures("no_trace")
def test_file_contains_the_description_of_the_network(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    model = create_model("isanet_tiny", pretrained=True)
    path = export_onnx(model, tmp_path / "model.onnx", **FIXED, check=False)
    description = read_description(path)
    assert description == describe(model)
    assert description.model == "isanet_tiny"
    assert description.label_set == tiny_zoo.weights.label_set
    assert description.preprocess == tiny_zoo.weights.preprocess
    assert description.provenance is not None
    assert description.provenance.unchanged
    assert description.provenance.licence == tiny_zoo.weights.licence
    assert onnx.load(path).producer_version == isanet_zoo.__version__


@pytest.mark.usefixtures("no_trace")
def test_file_of_a_network_with_an_exchanged_part_is_written(tmp_path: Path) -> None:
    colours, ids = ("#000000",) * 5, (9, 8, 7, 6, 5)
    model = small(label_set=LabelSet("mine", "Mine", ("a", "ß", *"bcd"), colours, ids))
    model.head.attention = torch.nn.Identity()  # type: ignore[assignment]
    description = read_description(
        export_onnx(model, tmp_path / "model.onnx", **FIXED, check=False)
    )
    assert description.label_set == model.label_set
    assert description.provenance is None


def test_file_names_its_axes_and_contains_no_paths_of_this_machine(shallow_file: Path) -> None:
    content = onnx.load(shallow_file).graph
    for value, name in ((content.input[0], "images"), (content.output[0], "logits")):
        sides = [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        assert value.name == name
        assert sides == ["batch", 3 if name == "images" else 5, "height", "width"]
    assert str(ROOT).encode() not in shallow_file.read_bytes()
    assert b"site-packages" not in shallow_file.read_bytes()


def test_export_without_a_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EnvironmentProblem, match=r"onnxscript .* pip install 'isanet-zoo\[onnx\]'"):
        export_onnx(small(), tmp_path / "model.onnx")


def test_export_with_an_error_of_torch_names_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no counterpart\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(EnvironmentProblem, match=r"torch .* \(no counterpart\); .* tested with"):
        export_onnx(small(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_torch_export_supports_dynamic_sizes() -> None:
    """Of sides from 9 pixels, so also of a single window of attention; others are one error."""
    model = small()
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (torch.randn(2, 3, 100, 140),), dynamic_shapes=(axes,))
    shapes = [(1, 97, 141), (3, 65, 200), (1, 128, 192), (2, 300, 211)]
    for batch, *sides in [*shapes, (2, 64, 64), (1, 33, 65), (1, 16, 300), (3, 9, 20)]:
        shape = (batch, 3, *sides)
        images = torch.randn(shape)
        torch.testing.assert_close(program.module()(images), model(images))
    for sides in ([8, 64], [64, 1]):
        with pytest.raises(AssertionError, match=r"images\.size\(\)\[[23]\] >= 9"):
            program.module()(torch.randn(1, 3, *sides))


def test_torch_compile_with_dynamic_sizes_captures_one_graph() -> None:
    """Other backends compile the same graph, and take longer."""
    model, images = small(), torch.randn(2, 3, 100, 140)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images))


def test_example_needs_neither_torch_nor_this_library(shallow_file: Path, tmp_path: Path) -> None:
    model, path, photo = shallow(), shallow_file, reference.DATA / "images" / "home.jpg"
    code = (
        "import runpy, sys; sys.modules |= {'torch': None, 'isanet_zoo': None};"
        f"sys.argv = ['onnx_predict.py', {str(path)!r}, {str(photo)!r}, 'labels.png'];"
        f"runpy.run_path({str(ROOT / 'examples' / 'onnx_predict.py')!r}, run_name='__main__')"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert "class " in printed
    expected = isanet_zoo.predict(model, photo)
    assert isinstance(expected, isanet_zoo.Segmentation)
    with Image.open(tmp_path / "labels.png") as image:
        assert np.mean(np.asarray(image) != expected.labels) < 1e-4
        assert (image.getpalette() or [])[:15] == [v for colour in model.palette for v in colour]


def test_export_of_own_classes_returns_the_logits_of_summed_probabilities(tmp_path: Path) -> None:
    model = shallow()
    path = export_onnx(
        model,
        tmp_path / "own.onnx",
        classes={"pair": ["class 3", "class 1"]},
        rest="other",
        dynamic=False,
        size=(40, 70),
    )
    images = torch.randn(1, 3, 40, 70)
    found = torch.from_numpy(run(path, images))
    all_classes = model(images).softmax(1)
    expected = torch.stack([all_classes[:, [1, 3]].sum(1), all_classes[:, [0, 2, 4]].sum(1)], 1)
    torch.testing.assert_close(found.softmax(1), expected, rtol=0, atol=1e-5)
    description = read_description(path)
    assert description.label_set.names == ("pair", "other")
    assert description.label_set.palette[0] == model.label_set.palette[3]
    assert description.network.num_classes == 2
    with pytest.raises(UnknownModelError, match="did you mean class 3"):
        export_onnx(model, tmp_path / "other.onnx", classes={"pair": ["class3"]})
