"""One step of training, for the runs of `training` and for loops of one's own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isanet_zoo.engines.depthwise import speed_up_depthwise
from isanet_zoo.errors import InputError
from isanet_zoo.learning import distributed
from isanet_zoo.learning.losses import segmentation_loss, total_weight
from isanet_zoo.learning.optimizers import create_optimizer, moving_average, poly
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.records import whole_number

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Trainer:
    """A model in training: what one step needs and changes.

    Args:
        model: the network; it is moved to `device` and trained in place.
        recipe: the numbers of the run.
        steps: how many steps the learning rate falls over.
        class_weights: (K,) weight of each class in the loss; alike if None.
        device: where to compute; the model's device if None.
        accumulate: parts that each batch is worked off in, to save memory.
        seed: of dropout.

    Raises:
        InputError: the recipe freezes a part that is not there, or weighs an auxiliary head that is
            not there.

    Attributes:
        result: the network whose weights are the outcome: the moving average if there is one.
        step: how many steps were made.

    Example:
        A loop of one's own::

            trainer = Trainer(model, recipe, steps=len(loader))
            for images, target in loader:
                loss = trainer.train_step(images, target)
            torch.save(trainer.result.state_dict(), "mine.pth")
    """

    def __init__(
        self,
        model: ISANet,
        recipe: Recipe,
        *,
        steps: int,
        class_weights: Tensor | None = None,
        device: str | torch.device | None = None,
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        self.device = torch.device(device or next(model.parameters()).device)
        self.recipe, self.seed = recipe, seed
        self.accumulate = whole_number("accumulate", accumulate)
        self.steps = whole_number("steps", steps)
        self.step = 0
        if recipe.aux_weight and model.aux_head is None:
            raise InputError(
                f"the recipe weighs an auxiliary head ({recipe.aux_weight}), but the network has "
                "none; build it with aux_loss=True, or set aux_weight to 0"
            )
        self.model = model.freeze(*recipe.frozen).to(self.device, torch.float32)
        self.model.to(memory_format=torch.channels_last)
        self.average = moving_average(model, recipe.ema) if recipe.ema is not None else None
        self.optimizer = create_optimizer(model, recipe)
        self.first_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.class_weights = None if class_weights is None else class_weights.to(self.device)
        if self.device.type == "cpu":
            speed_up_depthwise(model)
        self.network: nn.Module = distributed.synchronise_norms(model, self.device)
        if distributed.world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network, device_ids=ids)

    @property
    def result(self) -> ISANet:
        """The network whose weights are the outcome."""
        return self.model if self.average is None else cast(ISANet, self.average.module)

    @property
    def lr(self) -> float:
        """The encoder's learning rate in the next step."""
        return self.recipe.lr * self._share()

    def _share(self) -> float:
        recipe = self.recipe
        floor = recipe.min_lr / recipe.lr
        return poly(self.step, self.steps, power=recipe.power, floor=floor)

    def train_step(self, images: Tensor, target: Tensor) -> Tensor:
        """Learn from one batch.

        Args:
            images: (B, 3, H, W) float32; with several processes, this one's share of the batch.
            target: (B, H, W) int64.

        Returns:
            The loss over the batches of all processes, a scalar on the device.
        """
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        target = target.to(self.device, non_blocking=True)
        ignore_index = self.model.label_set.ignore_index
        self.network.train()
        for group, first in zip(self.optimizer.param_groups, self.first_lrs, strict=True):
            group["lr"] = first * self._share()
        self.optimizer.zero_grad()
        # The mean over the pixels of all processes and parts; DDP will divide by the processes.
        total = total_weight(target, self.class_weights, ignore_index=ignore_index)
        total = distributed.summed(total) / distributed.world_size()
        parts = list(zip(images.chunk(self.accumulate), target.chunk(self.accumulate), strict=True))
        loss = torch.zeros((), device=self.device)
        here = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(here):  # dropout's numbers depend on the step alone
            key = np.random.SeedSequence((self.seed, self.step, distributed.rank()))
            torch.manual_seed(int(key.generate_state(1)[0]))
            for number, (part, part_target) in enumerate(parts, 1):
                with self._communicate(number == len(parts)):
                    with torch.autocast(
                        self.device.type,
                        PRECISIONS[self.recipe.precision],
                        enabled=self.recipe.precision != "float32",
                    ):
                        output = self.network(part)
                    part_loss = segmentation_loss(
                        output,
                        part_target,
                        aux_weight=self.recipe.aux_weight,
                        class_weights=self.class_weights,
                        ignore_index=ignore_index,
                        total=total,
                    )
                    self.scaler.scale(part_loss).backward()  # type: ignore[no-untyped-call]
                loss += part_loss.detach()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return distributed.summed(loss) / distributed.world_size()

    def _communicate(self, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients with the last part of a batch only."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a later step depends on."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
