"""Networks built around checked tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from isanet_zoo.errors import CheckpointError, InputError, printable
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.own_classes import match_classes, name_classes
from isanet_zoo.network import backbones
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.checkpoints import LoadReport
from isanet_zoo.weights.cost import check_cost
from isanet_zoo.weights.description import Description
from isanet_zoo.weights.stored import State
from isanet_zoo.weights.tensors import state_digest

Model = TypeVar("Model", bound=ISANet)


class Loaded(NamedTuple):
    """Tensors that passed every check, under this library's names."""

    state: State
    description: Description
    report: LoadReport


def load_network(
    cls: type[Model],
    loaded: Loaded,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | LabelSet | None = None,
    in_chans: int | None = None,
    aux_loss: bool | None = None,
) -> Model:
    """Build a network around its tensors, in `eval()` mode.

    Args:
        cls: its class.
        loaded: tensors and description.
        num_classes: K; another number than the file's initialises the classifiers.
        classes: the K classes; those that the file has keep their rows of the classifiers.
        in_chans: channels of the images; others than the file's 3 adapt the first convolution.
        aux_loss: build the auxiliary head. None stands for the file's own, as for the two above.

    Raises:
        CheckpointError: the file has no auxiliary head, its input channels cannot be adapted, or
            the network is more expensive than every published one.
        InputError: a name of `classes` occurs twice or is not valid.
    """
    state, description, report = loaded
    _check_cost(description, report)
    label_set, rows = description.label_set, None
    if classes is not None:
        label_set = name_classes(classes, description.label_set)
        rows = match_classes(label_set, description.label_set)
        num_classes = len(rows)
    model = _build(
        cls, loaded, label_set, num_classes=num_classes, in_chans=in_chans, aux_loss=aux_loss
    )
    adapted = _adapt_stem(model, state, description.network.in_chans, report)
    fresh = _adapt_classifiers(model, description.network.num_classes, rows)
    if rows and fresh and any(row is not None for row in rows):
        adapted |= _keep_rows(fresh, state, rows)
        fresh = {}
    keys = model.state_dict().keys()
    chosen = {key: tensor for key, tensor in state.items() if key in keys} | fresh | adapted
    model.load_state_dict(chosen, assign=True)
    model.origin, model.weights = description, description.weights
    if model.weights:
        model.weights.log_terms()
    model.load_report = dataclasses.replace(
        report,
        fresh=tuple(fresh),
        adapted=tuple(adapted),
        unused=tuple(key for key in state if key not in keys),
        kept_classes=_names(label_set, rows, known=True),
        new_classes=_names(label_set, rows, known=False),
        state_digest=state_digest(chosen),
    )
    return model.eval()


def _check_cost(description: Description, report: LoadReport) -> None:
    """Raise CheckpointError if a network is more expensive than every published one."""
    try:
        check_cost(description.network, description.preprocess)
    except InputError as error:
        raise CheckpointError(f"{printable(report.source, 500)}: {error}") from error


def _build(
    cls: type[Model],
    loaded: Loaded,
    label_set: LabelSet,
    *,
    num_classes: int | None,
    in_chans: int | None,
    aux_loss: bool | None,
) -> Model:
    """Return a network on the meta device: every tensor is assigned later, none is initialised.

    Raises:
        CheckpointError: the file has no auxiliary head.
    """
    description = loaded.description
    config = description.network
    aux_loss = description.aux_head if aux_loss is None else aux_loss
    if aux_loss and not description.aux_head:
        raise CheckpointError(
            f"{loaded.report.source} has no auxiliary head; load it with aux_loss=False, or train "
            "it with --set aux_weight=0"
        )
    network = dataclasses.replace(
        config,
        num_classes=config.num_classes if num_classes is None else num_classes,
        in_chans=config.in_chans if in_chans is None else in_chans,
    )
    with torch.device("meta"):
        return cls.from_config(
            network,
            aux_loss=aux_loss,
            label_set=label_set if len(label_set) == network.num_classes else None,
            preprocess=description.preprocess,
        )


def _adapt_stem(
    model: ISANet, state: State, in_chans: int, report: LoadReport
) -> dict[str, Tensor]:
    """Return the weight of the first convolution, by key, if it must be adapted to the network."""
    if model.config.in_chans == in_chans:
        return {}
    if in_chans != 3:
        raise CheckpointError(
            f"{report.source} is for {in_chans} input channels, which cannot be adapted; load it "
            f"with in_chans={in_chans}"
        )
    key = f"backbone.{backbones.first_convolution(model.backbone)}"
    return {key: backbones.adapt_first_convolution(state[key], model.config.in_chans)}


def _keep_rows(
    classifiers: dict[str, Tensor], state: State, rows: Sequence[int | None]
) -> dict[str, Tensor]:
    """Return the parameters of classifiers with the rows that the file has."""
    for key, parameter in classifiers.items():
        for index, row in enumerate(rows):
            if row is not None:
                parameter[index] = state[key][row]
    return classifiers


def _names(
    label_set: LabelSet, rows: Sequence[int | None] | None, *, known: bool
) -> tuple[str, ...]:
    """Return the names of the own classes that the file has, or of the others."""
    if rows is None:
        return ()
    pairs = zip(label_set.names, rows, strict=True)
    return tuple(name for name, row in pairs if (row is not None) == known)


def _adapt_classifiers(
    model: ISANet, num_classes: int, rows: Sequence[int | None] | None
) -> dict[str, Tensor]:
    """Return new parameters for the last layer of each head, by key, if the file's do not fit.

    They fit if the file has as many classes, `num_classes`, in the same order.
    """
    if [*(rows or range(model.config.num_classes))] == [*range(num_classes)]:
        return {}
    parameters: dict[str, Tensor] = {}
    for name, head in (("head", model.head), ("aux_head", model.aux_head)):
        if head is not None:
            layer = nn.Conv2d(
                *(head.classifier.in_channels, model.config.num_classes, 1),
                device="cpu",  # not torch's defaults, which the user may have changed
                dtype=torch.float32,
            )
            parameters |= {f"{name}.classifier.{k}": t for k, t in layer.state_dict().items()}
    return parameters
