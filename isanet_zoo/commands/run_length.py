"""Length of a training run, estimated from its first steps."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

from isanet_zoo.manifest.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from isanet_zoo.learning.run import RunProgress

TIMED = 4  # steps after the first whose time is measured


class RunLength:
    """The length of a run, once its first steps have shown how long one takes."""

    def __init__(self, images: int, recipe: Recipe, target: torch.device) -> None:
        self.images, self.recipe, self.device = images, recipe, target
        self.first: tuple[int, float] | None = None  # step that was the first, and when it ended
        self.described = False

    def describe(self, moment: RunProgress) -> str:
        """Return a line after the first steps, else an empty string."""
        now = time.monotonic()
        if self.first is None:
            self.first = (moment.step, now)
        done = moment.step - self.first[0]
        if self.described or done < min(TIMED, moment.steps - self.first[0]) or not done:
            return ""
        from isanet_zoo.learning.memory import peak_memory

        self.described = True
        seconds = (now - self.first[1]) / done
        left = timedelta(seconds=round(seconds * (moment.steps - moment.step)))
        parts = [
            f"{self.images} images in {self.images // self.recipe.batch_size} steps per epoch",
            f"{moment.steps} steps, {seconds:.2g} s each",
            f"about {left} left without validation",
            peak_memory(self.device),
        ]
        return "; ".join(filter(None, parts))
