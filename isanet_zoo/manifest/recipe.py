"""Hyper-parameters of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from isanet_zoo.errors import InputError
from isanet_zoo.records import Range, Record, Text

Count = Annotated[int, Range(1, 1_000_000)]
Side = Annotated[int, Range(1, 8192)]  # pixels
Factor = Annotated[float, Range(0.01, 100)]
Fraction = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 1_000_000)]


@dataclass(frozen=True)
class Recipe(Record):
    """Hyper-parameters of a training run.

    Raises:
        InputError: a number is out of range, or two contradict each other.
    """

    split: str  # of the data set, that is trained on
    epochs: Count
    batch_size: Count  # images per step, over all processes
    crop: tuple[Side, Side]  # (height, width) of the network's input, in pixels
    # (longest, shortest) side that an image is first resized to, keeping its aspect ratio; None
    # keeps its size
    base_size: tuple[Side, Side] | None
    scale: tuple[Factor, Factor]  # bounds of the random factor on top of that
    flip: Fraction  # probability of horizontal flips
    # a crop is drawn again, up to ten times, while one class covers more than this fraction of it
    max_category_ratio: Fraction
    brightness: Annotated[float, Range(0, 255)]  # largest shift, in grey levels
    contrast: tuple[Factor, Factor]  # bounds of the factor
    saturation: tuple[Factor, Factor]  # bounds of the factor
    hue: Annotated[float, Range(0, 180)]  # largest shift, in units of 2 degrees
    optimizer: Literal["sgd", "adamw"]
    lr: Annotated[float, Range(1e-12, 1_000_000)]  # learning rate of the encoder at the start
    head_multiplier: Weight  # the learning rate of the heads is `lr` times this
    momentum: Fraction  # of SGD; AdamW's first beta
    weight_decay: Weight  # of every parameter
    # "poly", per step: (lr - min_lr) * (1 - step / steps) ** power + min_lr
    schedule: Literal["poly"]
    power: Annotated[float, Range(0, 100)]
    min_lr: Weight
    aux_weight: Weight  # of the auxiliary head's loss; 0 trains no auxiliary head
    # c in the weight 1 / ln(c + fraction) of a class that covers this fraction of the pixels (ENet,
    # arXiv 1606.02147); None weighs all classes alike
    class_weights: Annotated[float, Range(1.0001, 100)] | None
    # decay of the exponential moving average of the weights, which is then saved; None saves the
    # weights themselves
    ema: Annotated[float, Range(0, 0.999999)] | None
    precision: Literal["float32", "bfloat16", "float16"]  # of autocast, unless float32
    frozen: tuple[Annotated[str, Text(200, 1)], ...]  # modules, such as "backbone.conv1"
    initialisation: str  # source of the encoder's first weights

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale", "contrast", "saturation"):
            low, high = getattr(self, name)
            if low > high:
                raise InputError(
                    f"{name} is {(low, high)}; it must be two factors, the smaller first"
                )
        if self.lr < self.min_lr:
            raise InputError(f"lr is {self.lr}; it must be at least min_lr, {self.min_lr}")
