"""Label sets: what the class ids of a label map mean, and how they are drawn."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cached_property

from isanet_zoo.errors import InputError, UnknownModelError


@dataclass(frozen=True)
class LabelSet:
    """The classes of a data set, in the order of the network's outputs.

    Attributes:
        name: short name of the data set, such as ``"ade20k"``.
        title: its name in print.
        names: one name per class, as its publisher writes it; synonyms are separated by commas.
        palette: one colour per class, ``"#rrggbb"``.
        official_ids: the pixel value of each class in the data set's own annotation files.
        ignore_index: the label of pixels that have no class.
    """

    name: str
    title: str
    names: tuple[str, ...]
    palette: tuple[str, ...]
    official_ids: tuple[int, ...]
    ignore_index: int = 255

    def __post_init__(self) -> None:
        for field in ("palette", "official_ids"):
            if len(getattr(self, field)) != len(self.names):
                raise InputError(
                    f"label set {self.name!r}: {len(self.names)} names but "
                    f"{len(getattr(self, field))} entries in {field}; give one per class"
                )
        for colour in self.palette:
            if not re.fullmatch("#[0-9a-f]{6}", colour):
                raise InputError(
                    f"label set {self.name!r}: colour {colour!r} is not like '#00ff7f'"
                )

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def generic(cls, num_classes: int) -> LabelSet:
        """Return a label set for `num_classes` classes of which nothing else is known."""
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
        """
        if isinstance(which, str):
            spoken = {self.short_name(index): index for index in reversed(range(len(self)))}
            known = spoken | {name: index for index, name in enumerate(self.names)}
            if which in known:
                return known[which]
            close = difflib.get_close_matches(which, known, n=3)
            advice = f"did you mean {', '.join(close)}?" if close else "see label_set.names"
            raise UnknownModelError(f"{self.title} has no class {which!r}; {advice}")
        if not 0 <= which < len(self):
            raise UnknownModelError(
                f"{self.title} has no class {which}; ids are 0..{len(self) - 1}"
            )
        return which


def _voc_colour(index: int) -> str:
    """Return colour `index` of the VOC devkit's colour map: the id's bits, dealt to R, G and B."""
    red = green = blue = 0
    for bit in range(8):
        red |= (index >> 3 * bit & 1) << 7 - bit
        green |= (index >> 3 * bit + 1 & 1) << 7 - bit
        blue |= (index >> 3 * bit + 2 & 1) << 7 - bit
    return f"#{red:02x}{green:02x}{blue:02x}"
