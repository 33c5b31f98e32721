"""Label sets: names, colours and official ids of the classes of a data set."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from isanet_zoo.errors import InputError, UnknownModelError, did_you_mean
from isanet_zoo.records import MOST_CLASSES, Range, Record, Text, whole_number

PerClass = Range(1, MOST_CLASSES)

ClassName = Annotated[str, Text(200, 1)]
Colour = Annotated[str, Text(7, pattern="#[0-9a-f]{6}", words="a colour like '#00ff7f'")]
OfficialId = Annotated[int, Range(0, MOST_CLASSES - 1)]


@dataclass(frozen=True)
class LabelSet(Record):
    """The classes of a data set, in the order of the network's outputs.

    Raises:
        InputError: a field is out of range, a name occurs twice, or there is not one colour and one
            id per class.
    """

    name: Annotated[str, Text(100, 1)]  # short name of the data set, such as "ade20k"
    title: Annotated[str, Text(200)]  # its name in print
    # one name per class, as its publisher writes it; synonyms are separated by commas
    names: Annotated[tuple[ClassName, ...], PerClass]
    palette: Annotated[tuple[Colour, ...], PerClass]  # one colour per class, "#rrggbb"
    # the value of each class in the data set's own masks, 0..255 for up to 256 classes
    official_ids: Annotated[tuple[OfficialId, ...], PerClass]
    ignore_index: Annotated[int, Range(0, 255)] = 255  # the label of pixels without a class

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("palette", "official_ids"):
            if len(getattr(self, field)) != len(self.names):
                raise InputError(
                    f"label set {self.name!r}: {len(self.names)} names but "
                    f"{len(getattr(self, field))} entries in {field}; there must be one per class"
                )
        ((twice, count),) = Counter(self.names).most_common(1)
        if count > 1:
            raise InputError(f"label set {self.name!r}: two classes have the name {twice!r}")
        if (largest := max(self.official_ids)) > max(255, len(self.names) - 1):
            raise InputError(f"label set {self.name!r}: official id {largest} is above 255")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def generic(cls, num_classes: int) -> LabelSet:
        """Return a label set with numbered names for `num_classes` classes.

        Raises:
            InputError: there are too many classes.
        """
        whole_number("num_classes", num_classes, at_most=MOST_CLASSES)
        return cls(
            name="generic",
            title=f"{num_classes} classes",
            names=tuple(f"class {index}" for index in range(num_classes)),
            palette=tuple(_voc_colour(index) for index in range(num_classes)),
            official_ids=tuple(range(num_classes)),
        )

    @cached_property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """The palette as (red, green, blue) in 0..255, one per class."""
        return tuple(
            (int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)) for code in self.palette
        )

    def short_name(self, index: int) -> str:
        """Return the first synonym of a class: ``"building"`` for ``"building, edifice"``."""
        return self.names[index].split(",")[0]

    def index(self, which: int | str) -> int:
        """Return the id of a class that is given by id, by name or by its first synonym.

        Raises:
            UnknownModelError: there is no such class; the message names close ones.
            InputError: it is neither an id nor a name.
        """
        if isinstance(which, str):
            short = {self.short_name(index): index for index in reversed(range(len(self)))}
            known = short | {name: index for index, name in enumerate(self.names)}
            if which in known:
                return known[which]
            advice = did_you_mean(which, known, "see label_set.names")
            raise UnknownModelError(f"{self.title} has no class {which!r}; {advice}")
        try:
            index = operator.index(which)
        except TypeError as error:
            raise InputError(
                f"class is a {type(which).__name__}; it must be an id or a name"
            ) from error
        if not 0 <= index < len(self):
            shown = index if abs(index) < 10**9 else "of a very large id"
            raise UnknownModelError(
                f"{self.title} has no class {shown}; ids are 0..{len(self) - 1}"
            )
        return index


def _voc_colour(index: int) -> str:
    """Return colour `index` of the VOC devkit: the bits of the id, interleaved over R, G and B."""
    red = green = blue = 0
    for bit in range(8):
        red |= (index >> 3 * bit & 1) << 7 - bit
        green |= (index >> 3 * bit + 1 & 1) << 7 - bit
        blue |= (index >> 3 * bit + 2 & 1) << 7 - bit
    return f"#{red:02x}{green:02x}{blue:02x}"
