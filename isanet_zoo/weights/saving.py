"""Descriptions and files of networks that are saved."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from torch import nn
from typing_extensions import Unpack

from isanet_zoo.errors import InputError
from isanet_zoo.files import atomic_write, check_target, to_path
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.manifest.weights import Metric, ModelFacts
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.checkpoints import structure
from isanet_zoo.weights.cost import check_cost
from isanet_zoo.weights.description import Description, is_described
from isanet_zoo.weights.tensors import check, plain_state, save_state, state_digest, unwrap, widen


def describe(
    model: ISANet,
    *,
    dataset: str = "",
    recipe: Recipe | None = None,
    metrics: Iterable[Metric] = (),
    licence: str | None = None,
    check_parts: bool = True,
) -> Description:
    """Return the description of a network as it is now.

    The arguments are those of `ModelFacts`. By default, the data set, the recipe and the metrics of
    loaded weights are kept if the weights have not changed since, and the licence always. Without
    `check_parts`, the network need not be one that could be loaded again.

    Raises:
        CheckpointError: the network could not be loaded again: a part of it was exchanged, or a
            parameter is not finite.
        InputError: a field is out of range, or the network is more expensive than every published
            one, see `check_cost`.
    """
    state, origin = plain_state(model), model.origin
    aux_head = any(key.startswith("aux_head.") for key in state)
    if check_parts:
        expected = structure(model.config, aux_loss=aux_head, cls=type(model))
        check(widen(state), expected, "the model to save")
        check_cost(model.config, model.preprocess)
    digest = state_digest(state)
    unchanged = origin is not None and digest == model.load_report.state_digest
    provenance = origin.provenance if origin else None
    if provenance:
        provenance = replace(provenance, unchanged=provenance.unchanged and unchanged)
    # A recipe and metrics belong to the tensors that they were made with.
    known = origin if unchanged else None
    return Description(
        model=origin.model if origin else "",
        network=model.config,
        label_set=model.label_set,
        preprocess=model.preprocess,
        dataset=dataset or (known.dataset if known else ""),
        recipe=recipe or (known.recipe if known else None),
        metrics=tuple(metrics) or (known.metrics if known else ()),
        aux_head=aux_head,
        state_digest=digest,
        licence=licence or (origin.licence if origin else None),
        provenance=provenance,
    )


def save_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    **facts: Unpack[ModelFacts],
) -> None:
    """Write a network's weights and description; ``create_model(name, weights=path)`` loads both.

    Args:
        model: an `ISANet`; wrappers for compilation, averaging or several devices are removed.
        path: the ``.safetensors`` file; it is replaced once the new file is complete.
        force: replace a file that this library did not write.
        facts: `dataset`, `recipe`, `metrics` and `licence` of the weights, see `describe`.

    Raises:
        InputError: the file cannot be written under that name, another file has it, or `model` is
            no ISANet.
        CheckpointError: the network could not be loaded again, see `describe`.
    """
    target, network = to_path(path, "path"), unwrap(model)
    if not isinstance(network, ISANet):
        raise InputError(f"model is a {type(network).__name__}; it must be an ISANet")
    if target.suffix != ".safetensors":
        raise InputError(f"{target} must end in .safetensors, to be recognised when it is loaded")
    check_target(target, is_ours=is_described, force=force)
    description = describe(network, **facts)
    try:
        with atomic_write(target) as temporary:
            save_state(plain_state(network), temporary, description=description.text())
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
