"""One function per model, so that editors, type checkers and torch.hub find them.

All have the arguments of `create_model` but for the name; see there.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import TypedDict, TypeVar

from typing_extensions import Unpack

from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.zoo import create_model

Factory = TypeVar("Factory", bound=Callable[..., ISANet])


class ModelOptions(TypedDict, total=False):
    """Options of `create_model`."""

    weights: str | os.PathLike[str] | None
    num_classes: int | None
    classes: Sequence[str] | LabelSet | None
    in_chans: int
    aux_loss: bool
    pretrained_backbone: bool | str | os.PathLike[str]
    progress: bool


def _show_options(factory: Factory) -> Factory:
    """Set the signature that `help` shows: each option with its default."""
    parameters = list(inspect.signature(create_model).parameters.values())[1:]
    factory.__signature__ = inspect.Signature(parameters, return_annotation="ISANet")  # type: ignore[attr-defined]
    return factory


@_show_options
def isanet_efficientnet_lite0os8_camvid(
    pretrained: bool = False, **options: Unpack[ModelOptions]
) -> ISANet:
    """ISANet on EfficientNet-Lite0 for CamVid: 11 classes; weights in isanet-zoo-camvid."""
    return create_model("isanet_efficientnet_lite0os8_camvid", pretrained, **options)


@_show_options
def isanet_resnet18os8_ade20k(pretrained: bool = False, **options: Unpack[ModelOptions]) -> ISANet:
    """ISANet on ResNet-18 for ADE20K: 150 classes, reported mIoU 38.73. Non-commercial."""
    return create_model("isanet_resnet18os8_ade20k", pretrained, **options)


@_show_options
def isanet_resnet18os8_cityscapes(
    pretrained: bool = False, **options: Unpack[ModelOptions]
) -> ISANet:
    """ISANet on ResNet-18 for Cityscapes: 19 classes, reported mIoU 75.72. Non-commercial."""
    return create_model("isanet_resnet18os8_cityscapes", pretrained, **options)


@_show_options
def isanet_resnet18os8_pascal_context(
    pretrained: bool = False, **options: Unpack[ModelOptions]
) -> ISANet:
    """ISANet on ResNet-18 for PASCAL Context: 59 classes, mIoU 47.25. Non-commercial."""
    return create_model("isanet_resnet18os8_pascal_context", pretrained, **options)


@_show_options
def isanet_resnet50os8_ade20k(pretrained: bool = False, **options: Unpack[ModelOptions]) -> ISANet:
    """ISANet on ResNet-50 for ADE20K: 150 classes, reported mIoU 42.60."""
    return create_model("isanet_resnet50os8_ade20k", pretrained, **options)


@_show_options
def isanet_resnet50os8_cityscapes(
    pretrained: bool = False, **options: Unpack[ModelOptions]
) -> ISANet:
    """ISANet on ResNet-50 for Cityscapes: 19 classes, reported mIoU 79.34."""
    return create_model("isanet_resnet50os8_cityscapes", pretrained, **options)


@_show_options
def isanet_resnet50os8_voc(pretrained: bool = False, **options: Unpack[ModelOptions]) -> ISANet:
    """ISANet on ResNet-50 for PASCAL VOC 2012: 21 classes, reported mIoU 76.99."""
    return create_model("isanet_resnet50os8_voc", pretrained, **options)


@_show_options
def isanet_resnet101os8_ade20k(pretrained: bool = False, **options: Unpack[ModelOptions]) -> ISANet:
    """ISANet on ResNet-101 for ADE20K: 150 classes, reported mIoU 44.08."""
    return create_model("isanet_resnet101os8_ade20k", pretrained, **options)


@_show_options
def isanet_resnet101os8_cityscapes(
    pretrained: bool = False, **options: Unpack[ModelOptions]
) -> ISANet:
    """ISANet on ResNet-101 for Cityscapes: 19 classes, reported mIoU 80.58."""
    return create_model("isanet_resnet101os8_cityscapes", pretrained, **options)


@_show_options
def isanet_resnet101os8_pascal_context(
    pretrained: bool = False, **options: Unpack[ModelOptions]
) -> ISANet:
    """ISANet on ResNet-101 for PASCAL Context: 59 classes, mIoU 53.41. Non-commercial."""
    return create_model("isanet_resnet101os8_pascal_context", pretrained, **options)


@_show_options
def isanet_resnet101os8_voc(pretrained: bool = False, **options: Unpack[ModelOptions]) -> ISANet:
    """ISANet on ResNet-101 for PASCAL VOC 2012: 21 classes, reported mIoU 78.60."""
    return create_model("isanet_resnet101os8_voc", pretrained, **options)
