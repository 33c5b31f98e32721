"""One step of training: autocast, GradScaler, DDP, gradient accumulation, weight averaging."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isanet_zoo.engines.depthwise import restore_depthwise, speed_up_depthwise
from isanet_zoo.engines.engine import Device, resolve_device
from isanet_zoo.errors import CheckpointError, InputError
from isanet_zoo.learning import distributed
from isanet_zoo.learning.losses import segmentation_loss, total_weight
from isanet_zoo.learning.memory import enough_memory
from isanet_zoo.learning.norms import synchronise, too_few_values
from isanet_zoo.learning.optimizers import (
    create_optimizer,
    load_named_state,
    moving_average,
    named_specs,
    named_state,
)
from isanet_zoo.learning.schedules import decay
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.records import whole_number
from isanet_zoo.weights.tensors import check, spec_of

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
MAX_SEED = 2**63 - 1


class Trainer:
    """A model in training: what one step needs and changes.

    Args:
        model: the network; it is moved to `device` and trained in place.
        recipe: the hyper-parameters.
        steps: number of steps of the schedule of the learning rate.
        class_weights: (K,) weight of each class in the loss; all equal if None.
        device: where to compute; the model's device if None.
        accumulate: number of chunks per batch (gradient accumulation), to save memory.
        seed: of dropout.

    Raises:
        InputError: the recipe freezes a part or weighs an auxiliary head that the network does not
            have, the device is not available, or a number is out of range.

    Attributes:
        step: number of steps that were made.

    Example:
        In a custom loop::

            trainer = Trainer(model, recipe, steps=len(loader))
            for images, target in loader:
                loss = trainer.train_step(images, target)
            torch.save(trainer.finish().state_dict(), "mine.pth")
    """

    def __init__(
        self,
        model: ISANet,
        recipe: Recipe,
        *,
        steps: int,
        class_weights: Tensor | None = None,
        device: Device | None = None,
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        self.device = resolve_device(device, next(model.parameters()).device)
        self.recipe = recipe
        self.seed = whole_number("seed", seed, at_least=0, at_most=MAX_SEED)
        self.accumulate = whole_number("accumulate", accumulate)
        self.steps = whole_number("steps", steps)
        self.step = 0
        if recipe.aux_weight and model.aux_head is None:
            raise InputError(
                f"aux_weight is {recipe.aux_weight}, but the network has no auxiliary head; build "
                "it with aux_loss=True, or set aux_weight to 0"
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
        synchronise(model, self.device)
        self.network: nn.Module = model
        if distributed.world_size() > 1:
            ids = None if self.device.type == "cpu" else [self.device.index]
            self.network = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)

    @property
    def result(self) -> ISANet:
        """The network with the resulting weights: the moving average if there is one."""
        return self.model if self.average is None else cast(ISANet, self.average.module)

    @property
    def lr(self) -> float:
        """The encoder's learning rate in the next step."""
        return self.recipe.lr * decay(self.recipe, self.step, self.steps)

    def train_step(self, images: Tensor, target: Tensor) -> Tensor:
        """Train on one batch.

        Args:
            images: (B, 3, H, W) float32; with several processes, this one's part of the batch.
            target: (B, H, W) int64.

        Returns:
            The loss over the batches of all processes, a scalar on the device.

        Raises:
            InputError: a batch norm sees a single value per channel, or the memory is too small.
        """
        self.network.train()
        for group, first in zip(self.optimizer.param_groups, self.first_lrs, strict=True):
            group["lr"] = first * decay(self.recipe, self.step, self.steps)
        self.optimizer.zero_grad()
        with self._translated_errors():
            loss = self._backward(images, target)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.device.type == "cpu":
            distributed.copy_from_first(self.model.buffers())  # there is no SyncBatchNorm on CPUs
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return distributed.add_up(loss) / distributed.world_size()

    def _backward(self, images: Tensor, target: Tensor) -> Tensor:
        """Compute the gradients of a batch, chunk by chunk; return the loss."""
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        target = target.to(self.device, non_blocking=True)
        ignore_index = self.model.label_set.ignore_index
        # The mean over the pixels of all processes and chunks; DDP divides by the processes.
        total = total_weight(target, self.class_weights, ignore_index=ignore_index)
        total = distributed.add_up(total) / distributed.world_size()
        chunks = list(
            zip(images.chunk(self.accumulate), target.chunk(self.accumulate), strict=True)
        )
        loss = torch.zeros((), device=self.device)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            # Dropout depends on seed, step and process alone.
            key = np.random.SeedSequence((self.seed, self.step, distributed.rank()))
            _seed(self.device, int(key.generate_state(1)[0]))
            for number, (chunk, chunk_target) in enumerate(chunks, 1):
                with self._gradient_exchange(number == len(chunks)):
                    with torch.autocast(
                        self.device.type,
                        PRECISIONS[self.recipe.precision],
                        enabled=self.recipe.precision != "float32",
                    ):
                        output = self.network(chunk)
                    chunk_loss = segmentation_loss(
                        output,
                        chunk_target,
                        loss=self.recipe.loss,
                        aux_weight=self.recipe.aux_weight,
                        class_weights=self.class_weights,
                        ignore_index=ignore_index,
                        total=total,
                    )
                    self.scaler.scale(chunk_loss).backward()  # type: ignore[no-untyped-call]
                loss += chunk_loss.detach()
        return loss

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Convert torch's errors of batches that are too small or too large to `InputError`."""
        recipe = self.recipe
        advice = (
            f"in a step; lower batch_size ({recipe.batch_size}) or crop ({list(recipe.crop)}), or "
            f"raise accumulate ({self.accumulate}), the number of chunks per batch"
        )
        try:
            with enough_memory(self.device, advice):
                yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise too_few_values(self.recipe, self.accumulate) from error

    def _gradient_exchange(self, last: bool) -> AbstractContextManager[None]:
        """Return a context in which DDP exchanges gradients only for the last chunk of a batch."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def find_not_finite(self, images: Tensor) -> str:
        """Return what is not finite in the state or in the logits of `images`, or "".

        Args:
            images: (B, 3, H, W) float32, prepared.
        """
        for key, tensor in self.state_dict().items():
            if not tensor.isfinite().all():
                return key
        with torch.no_grad():
            logits = self.result.eval().forward_logits(images.to(self.device))
        return "" if logits.isfinite().all() else "the logits of a training image"

    def finish(self) -> ISANet:
        """Undo the changes of layers for training on a CPU; return `result`."""
        restore_depthwise(self.model)
        return self.result

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that a later step depends on, as one flat dict of tensors."""
        parts: dict[str, Mapping[str, Any]] = {
            "model": self.model.state_dict(),
            "optimizer": named_state(self.optimizer, self.model),
        }
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        if self.scaler.is_enabled():
            scaler = self.scaler.state_dict()
            parts["scaler"] = {key: scaler[key] for key in ("scale", "_growth_tracker")}
        state = {"step": torch.tensor(self.step)}
        for part, tensors in parts.items():
            state |= {f"{part}.{key}": torch.as_tensor(value) for key, value in tensors.items()}
        return state

    def load_state_dict(
        self, state: Mapping[str, Tensor], *, name: str = "the training state"
    ) -> None:
        """Restore the state returned by `state_dict`.

        Args:
            state: the state.
            name: its name in error messages.

        Raises:
            CheckpointError: it belongs to another network, optimizer or recipe, or contains values
                that are not finite; nothing is changed.
        """
        specs = {key: spec_of(tensor) for key, tensor in self.state_dict().items()}
        specs = {key: spec for key, spec in specs.items() if not key.startswith("optimizer.")}
        moments = _part(state, "optimizer")
        of_moments = named_specs(self.optimizer, self.model, moments)
        specs |= {f"optimizer.{key}": spec for key, spec in of_moments.items()}
        check(dict(state), specs, name)
        step = int(state["step"])
        if not 0 <= step <= self.steps:
            raise CheckpointError(f"{name} is of step {step}; this run has {self.steps} steps")
        self.step = step
        self.model.load_state_dict(_part(state, "model"))
        if self.average is not None:
            self.average.load_state_dict(_part(state, "average"))
        load_named_state(self.optimizer, self.model, moments)
        scaler = {key: value.item() for key, value in _part(state, "scaler").items()}
        self.scaler.load_state_dict(self.scaler.state_dict() | scaler)


def _part(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of a flat dict whose keys start with a name, without it."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)
    }


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and of a device; `torch.manual_seed` seeds all GPUs."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
