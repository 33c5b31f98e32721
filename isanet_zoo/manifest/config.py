"""The numbers that make one ISANet differ from another, and how its input is prepared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from isanet_zoo.errors import InputError
from isanet_zoo.records import check_choices, real_number, whole_number

ResizeRule: TypeAlias = Literal["half_pixel", "corners", "asymmetric"]

OUTPUT_STRIDE = 8  # every published ISANet works on maps of 1/8 of the input


@dataclass(frozen=True)
class HeadConfig:
    """The segmentation head. The defaults are those of sssegmentation's six models.

    The published families differ in fuse_kernel, value_bias, aux_channels, activation, dropout and
    resize (and in their encoders), so the manifest says every number for every weight; the
    defaults serve networks that a user builds.

    Attributes:
        channels: C, width of the head's features.
        key_channels: D, width of queries and keys.
        partition: size of a short-range window in feature pixels, and so the stride of the
            long-range groups (P_h, P_w in the paper).
        fuse_kernel: kernel of the convolution that fuses attention and input features.
        value_bias: whether the value projection has a bias.
        aux_channels: width of the auxiliary head.
        activation: non-linearity of both heads.
        dropout: probability of dropping a channel before each classifier.
        resize: where bilinear resizing of the logits puts its samples, see `network.resize`.
    """

    channels: int = 512
    key_channels: int = 256
    partition: tuple[int, int] = (8, 8)
    fuse_kernel: Literal[1, 3] = 3
    value_bias: bool = False
    aux_channels: int = 512
    activation: Literal["relu", "leaky_relu"] = "relu"
    dropout: float = 0.1
    resize: ResizeRule = "half_pixel"

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("channels", "key_channels", "aux_channels"):
            whole_number(name, getattr(self, name))
        for side in self.partition:
            whole_number(f"partition {self.partition}: a side", side)
        real_number("dropout", self.dropout, "at least 0 and less than 1", 0, 1)


@dataclass(frozen=True)
class NetworkConfig:
    """A whole network: a timm encoder at output stride 8 and the head on top."""

    backbone: str
    num_classes: int
    in_chans: int = 3
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        whole_number("num_classes", self.num_classes)
        whole_number("in_chans", self.in_chans)


@dataclass(frozen=True)
class Preprocess:
    """From a picture to the network's input.

    Attributes:
        resize: (longest, shortest) side in pixels; the picture is scaled, up or down, until it just
            fits both. None keeps its size.
        mean: per channel, RGB, in grey levels 0..255; subtracted.
        std: per channel, RGB, in grey levels; divided by.
        order: of the channels that the network sees.
        pad: (height, width) that a smaller picture is filled up to, at the bottom and on the right,
            with the mean; what the network says about the filling is cut off. None does not.
        window: (height, width) of the windows that slide over a picture, in pixels of the input;
            scores are averaged where they overlap. None takes it whole.
        stride: (rows, columns) from one window to the next.
    """

    resize: tuple[int, int] | None = None
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    order: Literal["rgb", "bgr"] = "rgb"
    pad: tuple[int, int] | None = None
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        if (self.window is None) != (self.stride is None):
            raise InputError(f"window is {self.window}, stride {self.stride}; give both or none")
