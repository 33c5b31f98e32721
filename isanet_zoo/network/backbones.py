"""timm's encoders. The only module that imports timm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from isanet_zoo.cache import offline
from isanet_zoo.errors import (
    CheckpointError,
    DownloadError,
    EnvironmentProblem,
    InputError,
    OfflineError,
    connection_error,
    printable,
)
from isanet_zoo.manifest.config import OUTPUT_STRIDE, Preprocess

try:
    import timm
    from timm.layers import Conv2dSame, convert_sync_batchnorm
    from timm.models import adapt_input_conv
except ModuleNotFoundError as error:
    raise EnvironmentProblem(f"{error.name} is not installed: pip install timm") from error
except (ImportError, RuntimeError) as error:
    raise EnvironmentProblem(
        f"timm cannot be imported ({error}). This happens when torch and torchvision do not come "
        "from one release; reinstall them together: "
        "pip install --force-reinstall torch torchvision timm"
    ) from error


@dataclass(frozen=True)
class Variant:
    """A timm encoder as another project built it, with the same names and shapes of tensors.

    Attributes:
        timm: timm's encoder.
        ceil_pool: the stem's pooling keeps a last, partial window.
        full_dilation: the first block of a dilated stage is dilated as the others of its stage are;
            timm, like most, dilates it as the stage before.
        plain_shortcuts: shortcuts of dilated stages do not average, as there is no stride to
            average over.
        single_dilation: of a basic block, only the first convolution is dilated; timm dilates both.
        deep_stem: the stem has three 3 x 3 convolutions, of 32, 32 and 64 channels.
    """

    timm: str
    ceil_pool: bool = False
    full_dilation: bool = False
    plain_shortcuts: bool = False
    single_dilation: bool = False
    deep_stem: bool = False


VARIANTS = {
    # PaddleSeg's
    "resnet50_vd": Variant("resnet50d", full_dilation=True, plain_shortcuts=True),
    "resnet101_vd": Variant("resnet101d", full_dilation=True, plain_shortcuts=True),
    # openseg.pytorch's
    "deepbase_resnet101": Variant("resnet101s", ceil_pool=True),
    # mmsegmentation's, which BPKD uses
    "resnet18_v1c": Variant("resnet18", single_dilation=True, deep_stem=True),
}


def create_backbone(name: str, *, in_chans: int = 3, pretrained: bool = False) -> nn.Module:
    """Return a timm encoder that returns its last two feature maps, both at stride 8.

    Args:
        name: any timm model that supports `features_only` and `output_stride=8`, or one of
            `VARIANTS`.
        in_chans: channels of the input; timm adapts pretrained weights to it.
        pretrained: load timm's ImageNet weights, downloaded on first use.

    Raises:
        InputError: timm does not have the model, or not at stride 8.
        DownloadError: the ImageNet weights cannot be downloaded.
        OfflineError: the ImageNet weights are not cached and offline mode is on.
        CheckpointError: timm has no ImageNet weights for the model, or their file is damaged.
    """
    variant = VARIANTS.get(name, Variant(name))
    if not timm.is_model(variant.timm):
        close = timm.list_models(f"*{name}*")[:5]
        advice = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise InputError(f"timm has no model {name!r}; {advice}")
    if pretrained and variant.deep_stem:
        raise InputError(
            f"timm has no ImageNet weights for {name!r}; pass a file of them to create_model "
            "(pretrained_backbone=FILE) or to the command (--encoder FILE)"
        )
    try:
        backbone = _create(
            variant.timm,
            pretrained,
            in_chans=in_chans,
            features_only=True,
            output_stride=OUTPUT_STRIDE,
            out_indices=(-2, -1),
            **({"stem_type": "deep", "stem_width": 32} if variant.deep_stem else {}),
        )
    except (TypeError, NotImplementedError, AssertionError) as error:
        raise InputError(
            f"timm's {name!r} cannot be an encoder at stride {OUTPUT_STRIDE} ({error}); "
            "take one whose strides can be dilated, such as 'resnet50c'"
        ) from error
    if reductions := [stride for stride in strides(backbone) if stride != OUTPUT_STRIDE]:
        raise InputError(
            f"timm's {name!r} returns a map at stride {reductions[0]}, not {OUTPUT_STRIDE}; "
            "take one whose strides can be dilated, such as 'resnet50c'"
        )
    assert isinstance(backbone, nn.Module)
    return _rebuild(backbone, variant) if name in VARIANTS else backbone


def _create(name: str, pretrained: bool, **options: Any) -> Any:
    """Create a model of timm's; see `create_backbone`."""
    if not pretrained:
        return timm.create_model(name, **options)
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    what = f"timm's ImageNet weights for {name!r}"
    advice = "start from other weights, or from none (pretrained_backbone=False)"
    path = _find_cached(name)
    if path is None and offline():
        raise OfflineError(
            f"{what} are not cached, and offline mode is on; unset ISANET_ZOO_OFFLINE and "
            f"HF_HUB_OFFLINE, or {advice}"
        )
    try:
        if path is None:  # fail now, not after huggingface_hub's ten attempts
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        else:
            options["pretrained_cfg_overlay"] = {"file": path}
        return timm.create_model(name, pretrained=True, **options)
    except (HTTPError, OSError) as error:
        reason = connection_error(error) or printable(str(error).partition("\n")[0])
        raise DownloadError(f"{what} could not be downloaded: {reason}; or {advice}") from error
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{what} cannot be loaded ({printable(error)}); {advice}") from error


def _find_cached(name: str) -> str | None:
    """Return the file with timm's ImageNet weights in the Hub's cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return None
    path = try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    return path if isinstance(path, str) else None  # or a mark that the Hub has no such file


def is_encoder(name: str) -> bool:
    """Return True for the name of a timm model or of one of `VARIANTS`; it may lack stride 8."""
    return name in VARIANTS or timm.is_model(name)


def normalisation(name: str) -> Preprocess:
    """Return the preprocessing of timm's ImageNet weights of an encoder, without resizing."""
    config = timm.get_pretrained_cfg(VARIANTS.get(name, Variant(name)).timm)
    if config is None:
        return Preprocess()
    mean, std = (tuple(255 * value for value in values) for values in (config.mean, config.std))
    return Preprocess(mean=mean, std=std)


def _rebuild(backbone: Any, variant: Variant) -> nn.Module:
    """Change one of timm's ResNets to a variant, in place."""
    backbone.maxpool.ceil_mode = variant.ceil_pool
    for stage in (backbone.layer3, backbone.layer4):  # dilated at stride 8
        if variant.full_dilation:
            dilation = stage[1].conv2.dilation
            stage[0].conv2.dilation = stage[0].conv2.padding = dilation
        if variant.plain_shortcuts:
            stage[0].downsample[0] = nn.Identity()
        if variant.single_dilation:
            for block in stage:
                block.conv2.dilation = block.conv2.padding = (1, 1)
    changed: nn.Module = backbone
    return changed


def strides(backbone: nn.Module) -> list[int]:
    """Return the stride of each feature map."""
    info: Any = backbone.feature_info
    return list(info.reduction())


def widths(backbone: nn.Module) -> list[int]:
    """Return the channels of each feature map."""
    info: Any = backbone.feature_info
    return list(info.channels())


def set_grad_checkpointing(backbone: Any, enable: bool) -> None:
    """Enable or disable gradient checkpointing of an encoder.

    Raises:
        InputError: timm's encoder does not support it.
    """
    if not hasattr(backbone, "set_grad_checkpointing"):
        raise InputError(
            f"timm's {type(backbone).__name__} does not support gradient checkpointing"
        )
    for child in backbone.children():
        # timm before 1.0.31 also recomputes the activation of a stem, which fails in place.
        if getattr(child, "inplace", False):
            child.inplace = False
    backbone.set_grad_checkpointing(enable)


def first_convolution(backbone: nn.Module) -> str:
    """Return the name of the weight of the first convolution."""
    return next(name for name, weight in backbone.named_parameters() if weight.ndim == 4)


def adapt_first_convolution(weight: Tensor, in_chans: int) -> Tensor:
    """Return a (C, 3, kh, kw) weight as (C, in_chans, kh, kw), by timm's rule."""
    adapted: Tensor = adapt_input_conv(in_chans, weight)
    return adapted


def synchronise_norms(network: nn.Module) -> nn.Module:
    """Return a network with synchronised batch norms, also in place of timm's."""
    synchronised: nn.Module = convert_sync_batchnorm(network)
    return synchronised


def replace_same_padding(network: nn.Module) -> None:
    """Replace timm's `Conv2dSame` by an equivalent with integer padding, for an exporter.

    timm's float rounding makes later sizes opaque to the exporter, which takes many times longer.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            # A window that is smaller than its stride would need negative padding.
            if isinstance(child, Conv2dSame) and min(child.kernel_size) >= max(child.stride):
                setattr(parent, name, _SamePadded(child))


class _SamePadded(nn.Module):
    """A convolution whose output is its input's size over its stride, rounded up."""

    def __init__(self, original: nn.Conv2d) -> None:
        super().__init__()
        self.original = original

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/stride, W/stride)."""
        conv = self.original
        pads = []
        for axis in (1, 0):  # width, then height: `F.pad` begins with the last
            size, stride = x.shape[2 + axis], conv.stride[axis]
            window = (conv.kernel_size[axis] - 1) * conv.dilation[axis] + 1
            missing = (size + stride - 1) // stride * stride - size + window - stride
            pads += [missing // 2, missing - missing // 2]
        x = F.pad(x, pads)
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
