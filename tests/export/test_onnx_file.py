"""Exported files against the networks that they were made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import isanet_zoo
from isanet_zoo import (
    EnvironmentProblem,
    ExportError,
    HeadConfig,
    InputError,
    ISANet,
    LabelSet,
    Preprocess,
    create_model,
    export_onnx,
    get_weights,
)
from isanet_zoo.commands.main import main
from isanet_zoo.export import check, graph, onnx_file
from tests import reference
from tests.conftest import TinyZoo

ROOT = Path(isanet_zoo.__file__).parents[1]
SIZES = ((2, 3, 100, 140), (1, 3, 97, 141), (1, 3, 512, 683), (3, 3, 64, 200))
SMALL_SIZES = (*SIZES, (1, 3, 64, 64), (2, 3, 9, 70), (1, 3, 1, 1))

FIXED: dict[str, Any] = {"dynamic": False, "size": (97, 130)}  # traced in much less time

# The exporter's and the quantiser's own use of what Python or torch will drop one day.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def randomised(model: ISANet) -> ISANet:
    """Let a fresh network say something: its own norms would let next to nothing through."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.7, 1.3, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    model.head.classifier.weight.data.mul_(20)
    return model.eval()


def small(**options: Any) -> ISANet:
    torch.manual_seed(0)
    head = HeadConfig(channels=16, key_channels=8, aux_channels=8)
    return randomised(ISANet("test_resnet", 5, **{"head": head} | options))


def run(path: Path, images: torch.Tensor) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": images.numpy()})
    found: NDArray[Any] = output
    return found


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
    if min(shape[2:]) >= 64:  # and there is something to compare
        assert expected.std((2, 3)).mean() > 0.01


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(small(), tmp_path_factory.mktemp("export") / "small.onnx")


def test_resnet50_with_reference_weights(tmp_path: Path) -> None:
    name = "isanet_resnet50os8_voc"
    state = reference.fill(reference.upstream_shapes(name), sharp=True)
    model = create_model(name, weights=reference.save(state, "ssseg", tmp_path / "model.pth"))
    path = export_onnx(model, tmp_path / "model.onnx")
    for shape in SIZES:
        assert_same_logits(model, path, shape)


@pytest.mark.parametrize(
    "name",
    [
        "isanet_resnet50os8_cityscapes.mmseg_769x769_80k",
        "isanet_resnet50os8_cityscapes.paddle_769x769_80k",
    ],
)
def test_heads_of_other_families_on_a_small_encoder(name: str, tmp_path: Path) -> None:
    network = get_weights(name).network
    assert network.head.resize == ("corners" if "mmseg" in name else "asymmetric")
    torch.manual_seed(0)
    model = randomised(ISANet("test_resnet", network.num_classes, head=network.head))
    path = export_onnx(model, tmp_path / "model.onnx")
    for shape in SMALL_SIZES:
        assert_same_logits(model, path, shape)


@pytest.mark.parametrize("shape", SMALL_SIZES)
def test_one_file_serves_every_size(shape: tuple[int, ...], small_file: Path) -> None:
    assert_same_logits(small(), small_file, shape)


def test_labels_from_pixels(tmp_path: Path) -> None:
    model = small(
        preprocess=Preprocess(order="bgr", mean=(90.0, 100.0, 110.0), std=(50.0, 50.0, 50.0))
    )
    path = export_onnx(model, tmp_path / "model.onnx", output="labels", preprocess=True)
    pixels = torch.randint(0, 256, (2, 3, 97, 130), dtype=torch.uint8)
    found = run(path, pixels)
    assert found.dtype == np.uint8
    assert found.shape == (2, 97, 130)
    bgr = (pixels.flip(1) - torch.tensor([110.0, 100.0, 90.0]).view(3, 1, 1)) / 50
    with torch.no_grad():
        expected = model(bgr).argmax(1).numpy()
    assert np.mean(found != expected) < 1e-3  # near-ties
    assert len(np.unique(found)) > 1


def test_file_describes_itself(tmp_path: Path) -> None:
    name = "isanet_efficientnet_lite0os8_camvid"
    classes = LabelSet("mine", "Mine", ("a", "ß"), ("#000000", "#0000ff"), (9, 8))
    torch.manual_seed(0)
    model = ISANet("test_resnet", 2, label_set=classes)
    model.weights = get_weights(name)
    metadata = run_and_read(export_onnx(model, tmp_path / "model.onnx", **FIXED, check=False))
    assert metadata["model"] == name
    assert metadata["isanet_zoo"] == isanet_zoo.__version__
    assert json.loads(metadata["label_set"])["names"][1] == "ß"
    assert json.loads(metadata["label_set"])["official_ids"] == [9, 8]
    assert json.loads(metadata["preprocess"])["order"] == "rgb"
    provenance = json.loads(metadata["provenance"])
    assert "CC BY-NC" in provenance["licence"]["weights"]
    assert provenance["sha256"] == model.weights.sha256


def run_and_read(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return found


def test_file_names_its_axes_and_nothing_of_this_machine(small_file: Path) -> None:
    content = onnx.load(small_file).graph
    for value, name in ((content.input[0], "images"), (content.output[0], "logits")):
        sides = [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        assert value.name == name
        assert sides == ["batch", 3 if name == "images" else 5, "height", "width"]
    assert str(ROOT).encode() not in small_file.read_bytes()
    assert b"site-packages" not in small_file.read_bytes()


def test_model_stays_as_it_is(tmp_path: Path) -> None:
    model = small(aux_loss=True).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "model.onnx", dynamic=False, size=(40, 70))
    assert model.training
    assert model.aux_head is not None
    assert all(parameter.requires_grad for parameter in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_static_file_takes_its_size_alone(tmp_path: Path) -> None:
    model = small()
    path = export_onnx(model, tmp_path / "model.onnx", **FIXED)
    assert_same_logits(model, path, (1, 3, 97, 130))
    with pytest.raises(Exception, match="Got invalid dimensions"):
        run(path, torch.zeros(1, 3, 100, 130))


def test_half_precision(tmp_path: Path) -> None:
    model = small()
    path = export_onnx(model, tmp_path / "model.onnx", **FIXED, dtype=torch.float16)
    weights = onnx.load(path).graph.initializer
    large = [weight for weight in weights if np.prod(weight.dims) > 100]
    assert {weight.data_type for weight in large} == {onnx.TensorProto.FLOAT16}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert path.stat().st_size < 3 * parameters
    images = torch.randn(1, 3, 97, 130)
    found, expected = run(path, images), model(images).detach().numpy()
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_static_graph_that_was_promised_to_be_dynamic_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "trace", lambda net, images, _: graph.trace(net, images, False))
    with pytest.raises(ExportError, match=r"model.onnx was not written: .* 1x3x97x141"):
        export_onnx(small(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_size_that_was_baked_in_is_caught(
    output: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file takes every size, but pads and groups as the traced one needs."""
    resize = ISANet.resize

    def wrong(model: ISANet, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if torch.compiler.is_exporting():
            logits = logits.flip(-1) if output == "labels" else logits + 1e-2
        return resize(model, logits, size)

    monkeypatch.setattr(ISANet, "resize", wrong)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older one")
    with pytest.raises(ExportError, match=f"1x3x97x130 its {output} differ: "):
        export_onnx(small(), path, **FIXED, output=output)
    assert path.read_bytes() == b"an older one"
    assert list(tmp_path.iterdir()) == [path]


def pictures(folder: Path) -> Path:
    folder.mkdir()
    with Image.open(reference.DATA / "pictures" / "home.jpg") as image:
        for number in range(3):
            part = image.crop((40 * number, 0, 40 * number + 200, 150))
            part.save(folder / f"{number}.png")
    return folder


def test_few_of_many_pictures_are_used_evenly() -> None:
    names = [str(number) for number in range(100)]
    chosen = onnx_file._spread(names)
    assert len(chosen) == onnx_file.CALIBRATION
    assert (chosen[0], chosen[-1]) == ("0", "99")
    assert onnx_file._spread(names[:5]) == names[:5]


def test_int8(small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = small(), pictures(tmp_path / "pictures")
    path = export_onnx(model, tmp_path / "model.onnx", calibrate=folder)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" not in nodes
    assert nodes.count("QuantizeLinear") > 20
    assert path.stat().st_size < 0.5 * small_file.stat().st_size
    prepared = onnx_file._inputs(folder, model, False, None)
    with torch.no_grad():
        same = [run(path, x).argmax(1) == model(x).argmax(1).numpy() for x in prepared]
    assert np.mean(same) > 0.8
    assert json.loads(run_and_read(path)["label_set"])["name"] == "generic"

    monkeypatch.setattr(check, "LEAST_AGREEMENT", 1.01)
    with pytest.raises(ExportError, match="in int8 only"):
        export_onnx(model, tmp_path / "other.onnx", **FIXED, calibrate=folder)
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic": False}, "needs size"),
        ({"size": (64, 64)}, "has no size of its own"),
        ({"dynamic": False, "size": (0, 64)}, "the height is 0"),
        ({"dtype": torch.bfloat16}, "choose one of torch.float32, torch.float16"),
        ({"output": "scores"}, "choose one of logits, labels"),
        ({"calibrate": []}, "no pictures"),
        ({"calibrate": [], "dtype": torch.float16}, "int8"),
        ({"path": "missing/model.onnx", "dynamic": False, "size": (9, 9)}, "cannot be written"),
    ],
)
def test_options_that_make_no_sense(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        export_onnx(small(), **{"path": "model.onnx"} | options)
    assert list(tmp_path.iterdir()) == []


def test_networks_that_cannot_take_an_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes 4 channels"):
        export_onnx(small(in_chans=4), tmp_path / "model.onnx", preprocess=True)
    with pytest.raises(InputError, match="300 classes do not fit"):
        export_onnx(ISANet("test_resnet", 300), tmp_path / "model.onnx", output="labels")


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EnvironmentProblem, match=r"onnxscript .* pip install 'isanet-zoo\[onnx\]'"):
        export_onnx(small(), tmp_path / "model.onnx")


def test_torch_that_cannot_export_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no counterpart\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(EnvironmentProblem, match=r"torch .* \(no counterpart\); .* tested with"):
        export_onnx(small(), tmp_path / "model.onnx")


def test_torch_export_with_dynamic_sizes() -> None:
    """A program of torch keeps one guard that an ONNX file does not: more than one window."""
    model = small()
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (torch.randn(2, 3, 100, 140),), dynamic_shapes=(axes,))
    for shape in ((1, 3, 97, 141), (3, 3, 65, 200), (1, 3, 128, 192), (2, 3, 300, 211)):
        images = torch.randn(shape)
        torch.testing.assert_close(program.module()(images), model(images))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_finds_one_graph(backend: str) -> None:
    """Inductor is left out: it compiles for a minute, and takes the graph that these take."""
    model = small()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for shape in ((2, 3, 100, 140), (1, 3, 97, 141)):
            images = torch.randn(shape)
            torch.testing.assert_close(compiled(images), model(images))


def test_example_needs_neither_torch_nor_this_library(tmp_path: Path) -> None:
    model, photo = small(), reference.DATA / "pictures" / "home.jpg"
    with Image.open(photo) as image:
        size = (image.height, image.width)
    path = export_onnx(model, tmp_path / "model.onnx", dynamic=False, size=size, check=False)
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


def test_command(
    tiny_zoo: TinyZoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    target = tmp_path / "tiny.onnx"
    options = ["--labels", "--preprocess", "--static", "97x130"]
    assert main(["export", "isanet_tiny", str(target), *options]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{target}\n"
    assert "1x3x97x130: the same labels in onnxruntime" in printed.err
    assert run(target, torch.zeros(1, 3, 97, 130, dtype=torch.uint8)).shape == (1, 97, 130)
    assert main(["export", "isanet_tiny", str(target), "--int8"]) == 1
    assert "--calibrate DIR" in capsys.readouterr().err
