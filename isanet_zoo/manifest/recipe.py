"""Hyper-parameters of a training run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

from isanet_zoo import records
from isanet_zoo.errors import InputError, ManifestError, printable
from isanet_zoo.files import open_regular
from isanet_zoo.records import LONGEST_JSON, Range, Record, Text

Count = Annotated[int, Range(1, 1_000_000)]
Side = Annotated[int, Range(1, 8192)]  # pixels
Factor = Annotated[float, Range(0.01, 100)]
Fraction = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 1_000_000)]
Loss = Literal["cross_entropy", "dice", "focal", "ohem", "cross_entropy+dice"]


@dataclass(frozen=True)
class Recipe(Record):
    """Hyper-parameters of a training run.

    The defaults fine-tune pretrained weights on a few dozen to a few thousand images. Other
    recipes: `Recipe.upstream` of published weights, `Recipe.load` of an earlier run.

    Raises:
        InputError: a number is out of range, or two contradict each other.

    Example:
        >>> Recipe(epochs=50, loss="cross_entropy+dice").schedule
        'cosine'
    """

    split: str = "train"  # of the data set, that is trained on
    epochs: Count = 20
    batch_size: Count = 4  # images per step, over all processes
    crop: tuple[Side, Side] = (512, 512)  # (height, width) of the network's input, in pixels
    # (longest, shortest) side that an image is first resized to, keeping its aspect ratio; None
    # keeps its size
    base_size: tuple[Side, Side] | None = None
    scale: tuple[Factor, Factor] = (0.5, 2.0)  # bounds of the random factor on top of that
    flip: Fraction = 0.5  # probability of horizontal flips
    # a crop is drawn again, up to ten times, while one class covers more than this fraction of it
    max_category_ratio: Fraction = 0.75
    brightness: Annotated[float, Range(0, 255)] = 32.0  # largest shift, in grey levels
    contrast: tuple[Factor, Factor] = (0.5, 1.5)  # bounds of the factor
    saturation: tuple[Factor, Factor] = (0.5, 1.5)  # bounds of the factor
    hue: Annotated[float, Range(0, 180)] = 18.0  # largest shift, in units of 2 degrees
    optimizer: Literal["sgd", "adamw"] = "adamw"
    # learning rate of the encoder, before the schedule
    lr: Annotated[float, Range(1e-12, 1_000_000)] = 3e-4
    head_multiplier: Weight = 3.0  # the learning rate of the heads is `lr` times this
    momentum: Fraction = 0.9  # of SGD; AdamW's first beta
    weight_decay: Weight = 0.01  # of every parameter
    schedule: Literal["poly", "cosine", "constant"] = "cosine"  # see `learning.schedules`
    power: Annotated[float, Range(0, 100)] = 0.9  # of "poly"
    min_lr: Weight = 0.0  # learning rate of the encoder at the end, unless "constant"
    aux_weight: Weight = 0.4  # of the auxiliary head's loss; 0 trains no auxiliary head
    # c in the weight 1 / ln(c + fraction) of a class that covers this fraction of the pixels (ENet,
    # arXiv 1606.02147); None weighs all classes alike
    class_weights: Annotated[float, Range(1.0001, 100)] | None = None
    # decay of the exponential moving average of the weights, which is then saved; None saves the
    # weights themselves
    ema: Annotated[float, Range(0, 0.999999)] | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of autocast, unless float32
    frozen: tuple[Annotated[str, Text(200, 1)], ...] = ()  # modules, such as "backbone.conv1"
    initialisation: str = ""  # source of the encoder's first weights
    # fraction of all steps in which the learning rate rises linearly, before the schedule starts
    warmup: Fraction = field(default=0.05, metadata={"absent": 0.0})
    loss: Loss = field(default="cross_entropy", metadata={"absent": "cross_entropy"})
    # the run ends once the validation mIoU has not improved for so many epochs; None trains all
    patience: Count | None = field(default=None, metadata={"absent": None})

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

    @classmethod
    def upstream(cls, name: str) -> Recipe:
        """Return the recipe of published weights, such as ``"isanet_resnet50os8_voc"``.

        Where it was not published, that of the closest weights is returned and a warning logged.

        Raises:
            UnknownModelError: there is no such name; the message names close ones.
        """
        from isanet_zoo.manifest.lookup import get_weights  # lookup builds these records

        return get_weights(name).recipe

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a JSON file, such as the `recipe.json` of a run.

        Fields that the file does not contain have their defaults.

        Raises:
            InputError: the file cannot be read, or contains unknown names or values out of range.
        """
        name = printable(path, 1000)
        try:
            with open_regular(path) as file:
                content = records.parse(file.read(LONGEST_JSON + 1), name)
            if isinstance(content, dict):
                content = records.write(cls()) | content
            return records.read(cls, content, name)
        except OSError as error:
            raise InputError(f"{name} cannot be read: {error.strerror}") from error
        except ManifestError as error:
            raise InputError(
                f'{error}; write names and values like {{"lr": 0.001, "crop": [512, 512]}}'
            ) from error
