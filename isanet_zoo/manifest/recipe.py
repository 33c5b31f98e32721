"""The numbers of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from isanet_zoo.errors import InputError
from isanet_zoo.records import check_choices, real_number, whole_number

INFINITY = float("inf")
TINY = 1e-12  # so that "more than" and "at most" can be said


@dataclass(frozen=True)
class Recipe:
    """How weights were trained, or are to be.

    Attributes:
        split: the pictures that are trained on.
        epochs: how often each is seen.
        batch_size: pictures per step, over all processes.
        crop: (height, width) of what the network sees of each, in pixels.
        base_size: (longest, shortest) side that a picture is first scaled to, keeping its shape;
            None keeps its size.
        scale: bounds of the random factor on top of that.
        flip: probability of mirroring.
        max_category_ratio: a crop is drawn again (up to ten times) while one class takes more than
            this share of it.
        brightness: largest shift, in grey levels.
        contrast: bounds of the factor.
        saturation: bounds of the factor.
        hue: largest turn, in units of 2 degrees.
        optimizer: ``"sgd"`` or ``"adamw"``.
        lr: learning rate of the encoder at the start.
        head_multiplier: the heads learn at `lr` times this.
        momentum: of SGD; AdamW's first beta.
        weight_decay: of every parameter.
        schedule: ``"poly"``, per step: ``(lr - min_lr) * (1 - step / steps) ** power + min_lr``.
        power: its exponent.
        min_lr: where it ends.
        aux_weight: weight of the auxiliary head's loss; 0 trains none.
        class_weights: c in the weight ``1 / ln(c + share)`` of a class that has this share of the
            pixels (ENet, arXiv 1606.02147); None weighs all alike.
        ema: decay of the exponential moving average of the weights, which is then what is saved;
            None saves the weights themselves.
        precision: type of the network's arithmetic (autocast unless ``"float32"``).
        frozen: parts of the network, such as ``"backbone.conv1"``, that stay as they are.
        initialisation: where the encoder's first weights came from.
    """

    split: str
    epochs: int
    batch_size: int
    crop: tuple[int, int]
    base_size: tuple[int, int] | None
    scale: tuple[float, float]
    flip: float
    max_category_ratio: float
    brightness: float
    contrast: tuple[float, float]
    saturation: tuple[float, float]
    hue: float
    optimizer: Literal["sgd", "adamw"]
    lr: float
    head_multiplier: float
    momentum: float
    weight_decay: float
    schedule: Literal["poly"]
    power: float
    min_lr: float
    aux_weight: float
    class_weights: float | None
    ema: float | None
    precision: Literal["float32", "bfloat16", "float16"]
    frozen: tuple[str, ...]
    initialisation: str

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("epochs", "batch_size"):
            whole_number(name, getattr(self, name))
        for name in ("crop", "base_size"):
            for side in self._pair(name) or ():
                whole_number(f"{name} {getattr(self, name)}: a side", side)
        for name in ("scale", "contrast", "saturation"):
            low, high = self._pair(name)
            if not 0 < low <= high < INFINITY:
                raise InputError(f"{name} is {(low, high)}; give two factors, the smaller first")
        for name in ("flip", "momentum", "max_category_ratio"):
            real_number(name, getattr(self, name), "within 0..1", 0, 1 + TINY)
        for name in ("brightness", "hue", "head_multiplier", "weight_decay", "min_lr", "power"):
            real_number(name, getattr(self, name), "at least 0", 0, INFINITY)
        real_number("aux_weight", self.aux_weight, "at least 0", 0, INFINITY)
        real_number("lr", self.lr, "positive and at least min_lr", self.min_lr or TINY, INFINITY)
        if self.class_weights is not None:
            real_number("class_weights", self.class_weights, "more than 1", 1 + TINY, INFINITY)
        if self.ema is not None:
            real_number("ema", self.ema, "at least 0 and less than 1", 0, 1)

    def _pair(self, name: str) -> Any:
        """Return one of the fields that hold two numbers, or None.

        Raises:
            InputError: there are more or fewer.
        """
        value = getattr(self, name)
        if value is not None and len(value) != 2:
            raise InputError(f"{name} is {value}; give two numbers")
        return value
