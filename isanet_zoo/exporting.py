"""From a network to an ONNX file that computes the same: proven first, then left in place.

What the file says about itself, in the `metadata_props` of its model::

    isanet_zoo    the version of this library
    model         the zoo's name of the weights, or the encoder's where they are nobody's
    label_set     JSON: names, colours and official ids of the classes
    preprocess    JSON: how a picture becomes the network's input, see `Preprocess`
    provenance    JSON: source, hash, licence and links of the weights, as far as they are known

Letters in shapes: B batch, C channels, K classes, D key channels, H W image, h w feature map.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from isanet_zoo import __version__, records
from isanet_zoo.errors import EnvironmentProblem, ExportError, InputError
from isanet_zoo.inference.images import ImageLike, find_images, read_image
from isanet_zoo.inference.preprocess import input_size, prepare, resize_pixels
from isanet_zoo.network import backbones
from isanet_zoo.network.attention import SelfAttention
from isanet_zoo.network.config import OUTPUT_STRIDE
from isanet_zoo.network.depthwise import DepthwiseConv2d
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.options import whole_number
from isanet_zoo.weights.cache import replace, temporary_file

logger = logging.getLogger(__name__)

Output: TypeAlias = Literal["logits", "labels"]
Shape: TypeAlias = tuple[int, int, int, int]  # (B, C, H, W)

OPSET = 18
TESTED_TORCH = "2.15"
DTYPES = (torch.float32, torch.float16)
AXES = {0: "batch", 2: "height", 3: "width"}  # of the input, where the file is dynamic
ALLOWED = {  # largest difference of logits, as (absolute, share of the largest logit)
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 3e-2),
}
LEAST_AGREEMENT = 0.8  # of an int8 file's labels with the network's


def export_onnx(
    model: ISANet,
    path: str | os.PathLike[str],
    *,
    dynamic: bool = True,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    output: Output = "logits",
    preprocess: bool = False,
    calibrate: ImageLike | Iterable[ImageLike] | None = None,
    check: bool = True,
) -> Path:
    """Write a network as an ONNX file; needs ``pip install 'isanet-zoo[onnx]'``.

    The input `images` is (B, C, H, W) float32, prepared as the weights say, or with `preprocess`
    (B, 3, H, W) uint8 RGB, and nothing is left but to bring the picture to its size. The output is
    `logits`, (B, K, H, W) float32, or `labels`, (B, H, W) uint8.

    Args:
        model: the network; its mode, device and type stay as they are.
        path: the file; it appears, or is replaced, once it is whole and checked.
        dynamic: one file for every batch, height and width; otherwise for one picture of `size`.
        size: (height, width) of the input where the file is not dynamic.
        dtype: of weights and arithmetic, `torch.float32` or `torch.float16` (half the size; fast
            where the runtime has kernels for it, such as on a GPU). Logits are float32 either way.
        output: logits or labels.
        preprocess: put normalisation and channel order into the file.
        calibrate: pictures like those that the file is for, a folder or an iterable; the file is
            then quantised to int8 for CPUs, with ranges of activations as on these pictures. Some
            dozens do; none of them should be used to measure the file.
        check: run the file in onnxruntime at several sizes, odd and even, and compare it with the
            network before it is left in place: logits within 1e-4 (of float32; half precision is
            allowed 3 per cent of the largest), labels equal where two classes are not nearly tied.
            Labels of an int8 file have to agree on four in five pixels of the calibration.

    Returns:
        The path.

    Raises:
        InputError: the options contradict each other, or the file cannot be written.
        ExportError: the file would not compute what the network computes.
        EnvironmentProblem: onnx, onnxscript or onnxruntime is missing, or torch is too old.
    """
    target = Path(path)
    shapes = _check_options(model, dynamic, size, dtype, output, preprocess, calibrate)
    require("onnx", "onnxscript", "onnxruntime")
    network = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    network.aux_head = None
    graph = Graph(network, output, preprocess).eval()
    pictures = [] if calibrate is None else _inputs(calibrate, network, preprocess, size)
    proto = _trace(_for_onnx(graph, dtype), _noise(shapes[0], preprocess), dynamic)
    if pictures:
        from isanet_zoo.quantising import quantise

        proto = quantise(proto, pictures)
    _describe(proto, model)
    try:
        with temporary_file(target.parent, ".onnx") as temporary:
            temporary.write_bytes(proto.SerializeToString())
            if check:
                try:
                    _check(temporary, graph, shapes, dtype, pictures)
                except ExportError as error:
                    raise ExportError(f"{target} was not written: {error}") from error
            replace(temporary, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
    return target


class Graph(nn.Module):
    """What the file computes, from its input to its output."""

    def __init__(self, network: ISANet, output: Output, preprocess: bool) -> None:
        super().__init__()
        self.network = network
        self.output = output
        self.preprocess = preprocess
        self.dtype = torch.float32

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, K, H, W) or labels (B, H, W)."""
        logits = self.logits(images)
        return logits if self.output == "logits" else logits.argmax(1).to(torch.uint8)

    def logits(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, K, H, W) float32."""
        size = (images.shape[-2], images.shape[-1])
        if self.preprocess:
            images = prepare(images, self.network.preprocess, resize=False)
        logits = self.network.forward_logits(images.to(self.dtype))  # (B, K, h, w)
        return self.network.resize(logits.float(), size)


class _Attention(nn.Module):
    """`SelfAttention` written out: the exporter knows the fused operator for four dimensions only.

    The same parameters, and the same numbers but for rounding.
    """

    def __init__(self, original: SelfAttention) -> None:
        super().__init__()
        self.query, self.key, self.value = original.query, original.key, original.value
        self.project = original.project

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w)."""
        query = self.query(x).flatten(2).transpose(1, 2)  # (B, h·w, D)
        key = self.key(x).flatten(2)  # (B, D, h·w)
        value = self.value(x).flatten(2)  # (B, C, h·w)
        shares = (query * query.shape[-1] ** -0.5 @ key).softmax(-1)  # (B, h·w, h·w)
        out: Tensor = self.project((value @ shares.transpose(1, 2)).reshape(x.shape))
        return out


def _for_onnx(graph: Graph, dtype: torch.dtype) -> Graph:
    """Return a copy whose every operator has a counterpart in ONNX."""
    graph = copy.deepcopy(graph)
    for parent in list(graph.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SelfAttention):
                setattr(parent, name, _Attention(child))
            elif isinstance(child, DepthwiseConv2d):  # left by training on a CPU
                setattr(parent, name, _plain_convolution(child))
    backbones.ease_export(graph.network.backbone)
    graph.network.to(dtype)
    graph.dtype = dtype
    return graph.eval()


def _plain_convolution(convolution: DepthwiseConv2d) -> nn.Conv2d:
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size[0],
        padding=convolution.padding[0],
        dilation=convolution.dilation[0],
        groups=convolution.groups,
        bias=False,
        device="meta",
    )
    plain.weight = convolution.weight
    return plain


def _check_options(
    model: ISANet,
    dynamic: bool,
    size: tuple[int, int] | None,
    dtype: torch.dtype,
    output: Output,
    preprocess: bool,
    calibrate: object,
) -> list[Shape]:
    """Return the input's shapes to try, that to trace first.

    Raises:
        InputError: the options contradict each other.
    """
    if not isinstance(model, ISANet):
        raise InputError(f"expected an ISANet, got {type(model).__name__}; see create_model")
    classes, channels = model.config.num_classes, model.config.in_chans
    if dynamic != (size is None):
        raise InputError(
            f"dynamic is {dynamic}, size {size}; a dynamic file has no size of its own, and one "
            "that is not dynamic needs size=(height, width)"
        )
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype}; choose one of {', '.join(map(str, DTYPES))}")
    if output not in get_args(Output):
        raise InputError(f"output is {output!r}; choose one of {', '.join(get_args(Output))}")
    if output == "labels" and classes > 256:
        raise InputError(f"{classes} classes do not fit into 8-bit labels; export logits")
    if channels != 3 and (preprocess or calibrate is not None):
        raise InputError(
            f"this network takes {channels} channels, and only RGB pictures can be prepared; "
            "export it without preprocess and calibrate"
        )
    if calibrate is not None and dtype != torch.float32:
        raise InputError(f"calibrate makes an int8 file; dtype {dtype} cannot be had as well")
    if size is None:
        sizes = _sizes(model.config.head.partition)
    else:
        height, width = size
        sizes = [(1, whole_number("the height", height), whole_number("the width", width))]
    return [(batch, channels, height, width) for batch, height, width in sizes]


def _sizes(partition: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Return (batch, height, width) to trace, then those to try as well.

    A graph that was traced on a map of a single attention window, or of whole windows, could get
    away with leaving out what others need.
    """
    rows, columns = (OUTPUT_STRIDE * side for side in partition)  # a window, in pixels
    return [
        (2, rows + 36, columns + 76),
        (1, rows + 33, columns + 77),  # odd
        (3, rows, 3 * columns + 8),  # a single row of windows
        (2, rows // 2 + 1, columns),  # less than a window
        (1, 3 * rows + 2, 2 * columns),
    ]


def _noise(shape: Shape, preprocess: bool) -> Tensor:
    """Return an input of that shape: made by rule, so that a failure can be repeated."""
    generator = torch.Generator().manual_seed(0)
    if preprocess:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator)


def _inputs(
    images: ImageLike | Iterable[ImageLike],
    network: ISANet,
    preprocess: bool,
    size: tuple[int, int] | None,
) -> list[Tensor]:
    """Return pictures as inputs of the file, brought to the size that the weights were tested at.

    Raises:
        InputError: there are none, or one has not the size of a file that is not dynamic.
    """
    config, inputs = network.preprocess, []
    for picture in map(read_image, find_images(images)):
        pixels = picture.pixels[None]
        shown = size or input_size(picture.size, config)
        pixels = resize_pixels(pixels, shown)
        inputs.append(pixels if preprocess else prepare(pixels, config, resize=False))
    if not inputs:
        raise InputError("calibrate holds no pictures; give some dozens")
    return inputs


def _trace(graph: Graph, images: Tensor, dynamic: bool) -> Any:
    """Return the graph as an ONNX model.

    Raises:
        EnvironmentProblem: torch cannot.
    """
    axes = dict.fromkeys(AXES, torch.export.Dim.DYNAMIC) if dynamic else None
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                graph,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(axes,),
                input_names=["images"],
                output_names=[graph.output],
                verbose=False,
            )
    except RuntimeError as error:  # the root of the exporter's errors
        cause = error.__cause__ or error
        raise EnvironmentProblem(
            f"torch {torch.__version__} cannot export this network "
            f"({str(cause).splitlines()[0]}); the export is tested with torch {TESTED_TORCH}: "
            "pip install --upgrade torch torchvision"
        ) from error
    assert program is not None
    proto = program.model_proto
    # The exporter notes which line of which file of this machine each operator comes from.
    for item in (*proto.graph.node, *proto.graph.input, *proto.graph.output):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    proto.graph.ClearField("metadata_props")
    del proto.graph.value_info[:]  # runtimes infer the shapes in between
    for value in (*proto.graph.input, *proto.graph.output):
        sides = value.type.tensor_type.shape.dim
        names = AXES if len(sides) == 4 else {0: "batch", 1: "height", 2: "width"}
        for axis, name in names.items():
            if sides[axis].dim_param:
                sides[axis].dim_param = name
    return proto


def _describe(proto: Any, model: ISANet) -> None:
    """Write the metadata that the head of this module lists."""
    weights = model.weights
    report = model.load_report
    provenance = {} if report is None else {"file": report.source.name, "trust": report.trust}
    if weights is not None:
        provenance |= {
            "dataset": weights.dataset,
            "family": weights.family,
            "sources": weights.sources,
            "sha256": weights.sha256 or weights.sha256_prefix,
            "licence": records.write(weights.licence),
            "links": records.write(weights.links),
        }
    metadata = {
        "isanet_zoo": __version__,
        "model": weights.name if weights is not None else model.config.backbone,
        "label_set": json.dumps(records.write(model.label_set), ensure_ascii=False),
        "preprocess": json.dumps(records.write(model.preprocess)),
        "provenance": json.dumps(provenance, ensure_ascii=False),
    }
    proto.producer_name, proto.producer_version = "isanet-zoo", __version__
    del proto.metadata_props[:]
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)


@torch.no_grad()
def _check(
    path: Path,
    graph: Graph,
    shapes: Sequence[Shape],
    dtype: torch.dtype,
    pictures: Sequence[Tensor],
) -> None:
    """Compare a file with the network that it was made from.

    Raises:
        ExportError: it computes something else; the message says at which size, and how much.
    """
    onnx: Any = importlib.import_module("onnx")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx's checker refuses it: {error}") from error
    run = runner(path)
    for shape in shapes:
        images = _noise(shape, graph.preprocess)
        found, logits = _run(run, images), graph.logits(images)
        expected = (logits.shape[0], *logits.shape[2 if graph.output == "labels" else 1 :])
        if tuple(found.shape) != expected:
            raise ExportError(f"at {_spell(shape)} it gives {_spell(found.shape)}")
        if pictures:
            continue  # what int8 makes of noise says nothing
        difference = _difference(found, logits, dtype)
        if difference:
            raise ExportError(f"at {_spell(shape)} its {graph.output} differ: {difference}")
        logger.info("%s: the same %s in onnxruntime", _spell(shape), graph.output)
    if pictures:
        shares = [
            (_labels(_run(run, images)) == _labels(graph(images))).float().mean().item()
            for images in pictures
        ]
        agreement = sum(shares) / len(shares)
        if agreement < LEAST_AGREEMENT:
            raise ExportError(
                f"in int8 only {agreement:.1%} of the labels of the {len(shares)} pictures stay "
                "what they are; calibrate with more pictures, or with such as the network knows"
            )
        logger.info("int8: %.2f%% of the labels of the pictures stay", 100 * agreement)


def _difference(found: Tensor, logits: Tensor, dtype: torch.dtype) -> str:
    """Say how logits or labels differ from the expected logits; nothing where they may."""
    absolute, relative = ALLOWED[dtype]
    allowed = absolute + relative * logits.abs().max().item()
    if found.ndim == logits.ndim:
        largest = (found - logits).abs().max().item()
        return "" if largest <= allowed else f"by {largest:.2g}, where {allowed:.2g} is allowed"
    best = logits.topk(min(2, logits.shape[1]), dim=1).values  # (B, 2, H, W)
    clear = best[:, 0] - best[:, -1] > 2 * allowed  # of one class: nowhere
    wrong = int(((found != logits.argmax(1)) & clear).sum())
    return f"{wrong} of {int(clear.sum())} that are no near-ties" if wrong else ""


def _labels(output: Tensor) -> Tensor:
    return output if output.ndim == 3 else output.argmax(1)


def runner(path: Path) -> Any:
    """Return onnxruntime's session for a file, on the CPU."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _run(session: Any, images: Tensor) -> Tensor:
    """Run a file.

    Raises:
        ExportError: it does not take this size.
    """
    try:
        (output,) = session.run(None, {"images": images.numpy()})
    except Exception as error:  # onnxruntime's errors have no root but this
        raise ExportError(f"it cannot be run at {_spell(images.shape)}: {error}") from error
    return torch.from_numpy(output)


def _spell(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def require(*packages: str) -> None:
    """Import packages of the extra `onnx`.

    Raises:
        EnvironmentProblem: one is missing.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise EnvironmentProblem(
                f"{package} cannot be imported ({error}): pip install 'isanet-zoo[onnx]'"
            ) from error
