"""Optimizer and weight averaging."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.tensors import Spec, spec_of


def create_optimizer(model: ISANet, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe, for all parameters that are not frozen."""
    groups = model.param_groups(recipe.lr, recipe.head_multiplier)
    if recipe.optimizer == "adamw":
        betas = (recipe.momentum, 0.999)
        return torch.optim.AdamW(groups, betas=betas, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def named_state(optimizer: torch.optim.Optimizer, model: ISANet) -> dict[str, Tensor]:
    """Return the state of an optimizer as tensors by ``<parameter>.<field>``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}.{field}": value
        for parameter, fields in optimizer.state.items()
        for field, value in fields.items()
    }


def named_specs(
    optimizer: torch.optim.Optimizer, model: ISANet, keys: Iterable[str]
) -> dict[str, Spec]:
    """Return type and shape of each tensor of `named_state`, for the parameters of some keys.

    A parameter that never had a gradient has no state.
    """
    found = {key.rpartition(".")[0] for key in keys}
    fields: tuple[str, ...] = ("exp_avg", "exp_avg_sq", "step")
    if not isinstance(optimizer, torch.optim.AdamW):
        fields = ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    return {
        f"{name}.{field}": Spec("float32", ()) if field == "step" else spec_of(parameter)
        for name, parameter in _trained(optimizer, model)
        if name in found
        for field in fields
    }


def load_named_state(
    optimizer: torch.optim.Optimizer, model: ISANet, state: Mapping[str, Tensor]
) -> None:
    """Restore the state returned by `named_state`."""
    entries: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, _, field = key.rpartition(".")
        entries.setdefault(name, {})[field] = tensor
    numbered = {
        number: entries[name]
        for number, (name, _) in enumerate(_trained(optimizer, model))
        if name in entries
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": numbered, "param_groups": groups})


def _trained(optimizer: torch.optim.Optimizer, model: ISANet) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of the parameters of an optimizer, in its order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter


def moving_average(model: ISANet, decay: float) -> AveragedModel:
    """Return an exponential moving average: ``average = decay * average + (1 - decay) * new``.

    The first update copies the model. Then the decay grows up to `decay`, as ``(1 + n) / (10 + n)``
    after n updates, to give the first weights little influence.
    """

    def average(old: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
        if not new.is_floating_point():
            return new
        step = float(updates)
        return torch.lerp(old, new, 1 - min(decay, (1 + step) / (10 + step)))

    return AveragedModel(model, avg_fn=average, use_buffers=True)
