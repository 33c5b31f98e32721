"""One function per model, so that editors, type checkers and torch.hub see them.

All have one signature, that of `create_model` without the name; see there for the arguments.
"""

from __future__ import annotations

import os

from isanet_zoo.network.isanet import ISANet
from isanet_zoo.zoo import create_model


def isanet_efficientnet_lite0os8_camvid(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """ISANet on EfficientNet-Lite0 for CamVid: 11 classes; the weights come with this library."""
    return create_model(
        "isanet_efficientnet_lite0os8_camvid",
        pretrained,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        progress=progress,
    )


def isanet_resnet18os8_ade20k(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """ISANet on ResNet-18 for ADE20K: 150 classes, reported mIoU 38.73. Non-commercial."""
    return create_model(
        "isanet_resnet18os8_ade20k",
        pretrained,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        progress=progress,
    )


def isanet_resnet18os8_cityscapes(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """ISANet on ResNet-18 for Cityscapes: 19 classes, reported mIoU 75.72. Non-commercial."""
    return create_model(
        "isanet_resnet18os8_cityscapes",
        pretrained,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        progress=progress,
    )


def isanet_resnet18os8_pascal_context(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """ISANet on ResNet-18 for PASCAL Context: 59 classes, mIoU 47.25. Non-commercial."""
    return create_model(
        "isanet_resnet18os8_pascal_context",
        pretrained,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        progress=progress,
    )


def isanet_resnet50os8_ade20k(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """ISANet on ResNet-50 for ADE20K: 150 classes, reported mIoU 42.60."""
    return create_model(
        "isanet_resnet50os8_ade20k",
        pretrained,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        progress=progress,
    )


def isanet_resnet50os8_cityscapes(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """ISANet on ResNet-50 for Cityscapes: 19 classes, reported mIoU 79.34."""
    return create_model(
        "isanet_resnet50os8_cityscapes",
        pretrained,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        progress=progress,
    )


def isanet_resnet50os8_voc(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """ISANet on ResNet-50 for PASCAL VOC 2012: 21 classes, reported mIoU 76.99."""
    return create_model(
        "isanet_resnet50os8_voc",
        pretrained,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        progress=progress,
    )


def isanet_resnet101os8_ade20k(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """ISANet on ResNet-101 for ADE20K: 150 classes, reported mIoU 44.08."""
    return create_model(
        "isanet_resnet101os8_ade20k",
        pretrained,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        progress=progress,
    )


def isanet_resnet101os8_cityscapes(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """ISANet on ResNet-101 for Cityscapes: 19 classes, reported mIoU 80.58."""
    return create_model(
        "isanet_resnet101os8_cityscapes",
        pretrained,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        progress=progress,
    )


def isanet_resnet101os8_pascal_context(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """ISANet on ResNet-101 for PASCAL Context: 59 classes, mIoU 53.41. Non-commercial."""
    return create_model(
        "isanet_resnet101os8_pascal_context",
        pretrained,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        progress=progress,
    )


def isanet_resnet101os8_voc(
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """ISANet on ResNet-101 for PASCAL VOC 2012: 21 classes, reported mIoU 78.60."""
    return create_model(
        "isanet_resnet101os8_voc",
        pretrained,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        progress=progress,
    )
