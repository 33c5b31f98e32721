"""Layers of timm's blocks, in the order in which they run, and tests of their kind."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

# Classes are named, not imported: a version of timm may lack some. Subclasses are other classes.
CONTAINERS = {  # they call their children in order
    "torch.nn.modules.container.Sequential",
    "timm.models._features.FeatureListNet",
}
BLOCKS = "timm.models._efficientnet_blocks"
LAYERS = {  # children in the order in which `forward` calls them, "+" is the sum with the shortcut
    "timm.models.resnet.BasicBlock": "conv1 bn1 drop_block act1 aa conv2 bn2 se + act2",
    "timm.models.resnet.Bottleneck": "conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3 se"
    " + act3",
    "timm.models.efficientnet.EfficientNetFeatures": "conv_stem bn1 blocks",
    "timm.models.mobilenetv3.MobileNetV3Features": "conv_stem bn1 act1 blocks",
    "timm.layers.conv_bn_act.ConvNormAct": "conv bn aa",
    f"{BLOCKS}.ConvBnAct": "conv bn1 aa",
    f"{BLOCKS}.DepthwiseSeparableConv": "conv_s2d bn_s2d conv_dw bn1 aa se conv_pw bn2",
    f"{BLOCKS}.InvertedResidual": "conv_s2d bn_s2d conv_pw bn1 conv_dw bn2 aa se conv_pwl bn3",
    f"{BLOCKS}.EdgeResidual": "conv_exp bn1 aa se conv_pwl bn2",
    f"{BLOCKS}.UniversalInvertedResidual": "dw_start pw_exp dw_mid se pw_proj dw_end layer_scale",
}
CONVOLUTIONS = {"torch.nn.modules.conv.Conv2d", "timm.layers.conv2d_same.Conv2dSame"}
NORMS = {
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    "timm.layers.norm_act.BatchNormAct2d",  # with an activation `act`
    "timm.layers.norm_act.SyncBatchNormAct",
}


class Block(NamedTuple):
    """A module as ``activation(layers(x) + shortcut(x))``, or ``layers(x)`` without a shortcut."""

    layers: list[nn.Module]  # called one after another
    shortcut: nn.Module | None = None  # `nn.Identity` for the input itself
    activation: nn.Module | None = None


def open_block(module: nn.Module) -> Block | None:
    """Return the layers of a module in evaluation mode, None if it is not supported."""
    children = dict(module.named_children())
    if class_name(module) in CONTAINERS:
        return Block(list(children.values()))
    order, _, activation = LAYERS.get(class_name(module), "").partition(" + ")
    names = order.split()
    # In evaluation mode, `drop_path` is the identity. Another version of timm may add children.
    if not names or not children.keys() <= {*names, activation, "downsample", "drop_path"}:
        return None
    layers = [children[name] for name in names if name in children]
    if activation:
        return Block(layers, children.get("downsample", nn.Identity()), children[activation])
    return Block(layers, nn.Identity() if getattr(module, "has_skip", False) else None)


def class_name(module: nn.Module) -> str:
    """Return the full name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def keeps_size(convolution: nn.Conv2d) -> bool:
    """Return True if a square convolution with zero padding keeps the size of maps."""
    kernel, dilation = convolution.kernel_size[0], convolution.dilation[0]
    return (
        kernel % 2 == 1
        and convolution.kernel_size == (kernel, kernel)
        and convolution.dilation == (dilation, dilation)
        and convolution.padding == (dilation * (kernel // 2),) * 2
        and convolution.padding_mode == "zeros"
        and convolution.stride == (1, 1)
    )
