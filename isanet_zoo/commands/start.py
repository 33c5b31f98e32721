"""Models that a training run starts from: those of the zoo, files, and timm encoders."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from isanet_zoo.commands.output import print_note
from isanet_zoo.errors import InputError, UnknownModelError

if TYPE_CHECKING:
    from isanet_zoo.manifest.labels import LabelSet
    from isanet_zoo.network.isanet import ISANet
    from isanet_zoo.weights.description import Description


def describe(name: str) -> Description | None:
    """Return the description of a model; None for the name of a timm encoder.

    Raises:
        UnknownModelError: there is neither.
    """
    from isanet_zoo.network.backbones import is_encoder
    from isanet_zoo.zoo import describe_model

    try:
        return describe_model(name)
    except UnknownModelError as error:
        if is_encoder(name):
            return None
        raise UnknownModelError(f"{error}; timm has no encoder of this name either") from None


def build_on_encoder(options: argparse.Namespace, labels: LabelSet, *, aux_loss: bool) -> ISANet:
    """Return a new network on a timm encoder.

    Raises:
        InputError: the encoder cannot have stride 8, or weights of a whole network are given.
    """
    import torch

    from isanet_zoo.network.backbones import normalisation
    from isanet_zoo.network.isanet import ISANet
    from isanet_zoo.weights.checkpoints import load_encoder

    if options.weights:
        raise InputError(
            f"{options.name} is an encoder, and --weights are those of a whole network; pass its "
            "name or file in place of the encoder's"
        )
    if not (options.imagenet or options.encoder or options.scratch):
        print_note("the encoder starts from random weights; --imagenet starts from timm's")
    torch.manual_seed(options.seed)  # of newly initialised parameters
    model = ISANet(
        options.name,
        len(labels),
        aux_loss=aux_loss,
        pretrained_backbone=options.imagenet,
        label_set=labels,
        preprocess=normalisation(options.name),
    )
    if options.encoder:
        load_encoder(model, options.encoder)
    return model


def build_model(options: argparse.Namespace, labels: LabelSet, *, aux_loss: bool) -> ISANet:
    """Return the model that a run starts from; it keeps rows of the data set's classes."""
    import torch

    from isanet_zoo.zoo import create_model

    torch.manual_seed(options.seed)  # of newly initialised parameters
    return create_model(
        options.name,
        not (options.weights or options.imagenet or options.encoder or options.scratch),
        weights=options.weights,
        classes=labels,
        aux_loss=aux_loss,
        pretrained_backbone=options.encoder or options.imagenet,
    )
