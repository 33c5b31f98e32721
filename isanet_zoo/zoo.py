"""Networks of the zoo by name: `create_model`."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isanet_zoo.errors import CheckpointError, InputError, UnknownModelError
from isanet_zoo.hub import transfer
from isanet_zoo.manifest.config import NetworkConfig
from isanet_zoo.manifest.lookup import get_weights, load_manifest
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.network import backbones
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.acquire import load_published
from isanet_zoo.weights.cards import Card
from isanet_zoo.weights.checkpoints import Checkpoint, LoadReport
from isanet_zoo.weights.convert import load_own
from isanet_zoo.weights.layouts import ZOO

logger = logging.getLogger(__name__)

FILE_SUFFIXES = {".ckpt", ".pdparams", ".pt", ".pth", ".safetensors"}  # of paths, not of tags


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool = False,
    progress: bool = True,
) -> ISANet:
    """Build a model of the zoo; with `pretrained` or `weights`, load its weights and set `eval()`.

    Without either, nothing is downloaded and all parameters are fresh.

    Args:
        name: as `list_models` gives it; a tag (``name.tag``) selects others than the default. With
            `pretrained` it may also be a repository of the Hugging Face hub, written
            ``"hf-hub:org/repo[@revision]"``.
        pretrained: load the published weights of that name, fetching them on first use.
        weights: instead of `pretrained`: another tag of this model, a file (``.safetensors``, or a
            checkpoint of any family that published this model, which is checked and converted on
            the fly), or a repository, ``"hf-hub:org/repo[@revision]"``. What was written here
            brings its own classes and preprocessing; for others, give the closest published
            weights as `name`.
        num_classes: K; the weights' own if None. Another number leaves the classifiers fresh.
        in_chans: channels of the images; timm's rule adapts the first convolution to others than 3.
        aux_loss: build the auxiliary head, for training.
        pretrained_backbone: start the encoder alone from timm's ImageNet weights.
        progress: show a bar on stderr while bytes arrive.

    Returns:
        The network. `load_report` says what was loaded, `weights` is the manifest's record.

    Raises:
        UnknownModelError: no model or tag has this name.
        InputError: the arguments contradict each other, or a file does not exist.
        DownloadError: the weights are not cached and no source has them.
        CheckpointError: a file or repository given as `weights` does not hold this network's
            tensors, or was made from another model.
        IntegrityError: a repository's tensors are not those that its config belongs to.

    Example:
        >>> create_model("isanet_resnet50os8_voc", num_classes=5).config.num_classes
        5
    """
    record = None if name.startswith(transfer.PREFIX) else get_weights(name)
    if pretrained and weights is not None:
        raise InputError(
            f"pretrained=True and weights={str(weights)!r} both name weights; give one"
        )
    if pretrained_backbone and (pretrained or weights is not None):
        raise InputError(
            "pretrained_backbone=True starts the encoder alone, but pretrained or weights bring "
            "all parameters; give one"
        )
    if record is None and not pretrained:
        raise InputError(f"{name} brings its weights along; say pretrained=True")
    if record is not None and not pretrained and weights is None:
        classes = record.num_classes if num_classes is None else num_classes
        network = replace(record.network, num_classes=classes, in_chans=in_chans)
        return _build(network, record, aux_loss=aux_loss, pretrained_backbone=pretrained_backbone)
    if record is None:
        source = _from_hub(name, None, progress)
    elif str(weights).startswith(transfer.PREFIX):
        source = _from_hub(str(weights), record, progress)
    else:
        source = _from_file(record, weights, progress)
    model, report = _load(
        source,
        num_classes=source.checkpoint.network.num_classes if num_classes is None else num_classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
    )
    model.weights, model.load_report = source.record, report
    if isinstance(source.described, ISANet):
        model.origin = source.described.origin
    logger.info("%s: %s", name, report)
    return model.eval()


class _Source(NamedTuple):
    """Weights that were read and checked, and what is known of them.

    Attributes:
        checkpoint: the tensors.
        described: what knows their classes and preprocessing.
        record: the published weights that they are, or started from.
        report: where they were read.
    """

    checkpoint: Checkpoint
    described: Weights | Card | ISANet
    record: Weights | None
    report: LoadReport


def _from_file(record: Weights, weights: str | os.PathLike[str] | None, progress: bool) -> _Source:
    """Read published weights, or a file of the user's own."""
    described: Weights | Card
    record, path = _find_weights(record, weights)
    if path is not None:
        checkpoint, described = load_own(path, record)
        report = LoadReport(path, "local", checkpoint.layout.family)
        if isinstance(described, Weights):
            record = described
    else:
        described = record
        checkpoint, path, trust = load_published(record, progress=progress)
        report = LoadReport(path, trust, checkpoint.layout.family)
    started = not isinstance(described, Card) or described.model  # else from nothing
    return _Source(checkpoint, described, record if started else None, report)


def _from_hub(address: str, record: Weights | None, progress: bool) -> _Source:
    """Read a repository of the hub; its own config says what it is.

    Raises:
        CheckpointError: it was made from another model than the one that was named.
    """
    model = ISANet.from_pretrained(address, progress=progress)
    made_from = model.origin.model if model.origin else ""
    if record and made_from not in ("", record.model):
        raise CheckpointError(f"{address} was made from {made_from}, not from {record.model}")
    checkpoint = Checkpoint(dict(model.state_dict()), model.config, ZOO)
    return _Source(checkpoint, model, model.weights, model.load_report)


def _find_weights(
    record: Weights, weights: str | os.PathLike[str] | None
) -> tuple[Weights, Path | None]:
    """Return the record of the weights that are meant, and the path of a file of the user's own.

    Raises:
        InputError: `weights` is a path, and there is no such file.
        UnknownModelError: `weights` is neither a tag nor a file.
    """
    same_model = [other for other in load_manifest().values() if other.model == record.model]
    chosen = next((o for o in same_model if weights in (o.tag, o.name, f"{o.model}.{o.tag}")), None)
    if weights is None or chosen:
        return chosen or record, None
    if (path := Path(weights)).is_file():
        return record, path
    if not isinstance(weights, str) or path.suffix in FILE_SUFFIXES or len(path.parts) > 1:
        raise InputError(f"weights {str(weights)!r}: there is no such file")
    raise UnknownModelError(
        f"weights {str(weights)!r} are neither a file nor a tag of {record.model}, "
        f"which has {', '.join(other.tag for other in same_model)}"
    )


def _build(
    network: NetworkConfig,
    record: Weights | Card | ISANet,
    *,
    aux_loss: bool,
    pretrained_backbone: bool = False,
) -> ISANet:
    known = network.num_classes == len(record.label_set)
    return ISANet(
        network.backbone,
        network.num_classes,
        in_chans=network.in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        head=network.head,
        label_set=record.label_set if known else None,
        preprocess=record.preprocess,
    )


def _load(
    source: _Source,
    *,
    num_classes: int,
    in_chans: int,
    aux_loss: bool,
) -> tuple[ISANet, LoadReport]:
    """Build the network around a checked state dict, strictly.

    Raises:
        CheckpointError: the file has no auxiliary head, or other input channels.
    """
    checkpoint, described, _, report = source
    file = checkpoint.network
    network = replace(file, num_classes=num_classes, in_chans=in_chans)
    with torch.device("meta"):  # every tensor is assigned below; none is initialised twice
        model = _build(network, described, aux_loss=aux_loss)
    wanted = model.state_dict().keys()
    unused = tuple(key for key in checkpoint.state if key not in wanted)
    state = {key: tensor for key, tensor in checkpoint.state.items() if key in wanted}
    if aux_loss and not any(key.startswith("aux_head.") for key in state):
        raise CheckpointError(f"{report.source} has no auxiliary head; load it with aux_loss=False")
    fresh = _fresh_classifiers(model) if num_classes != file.num_classes else {}
    adapted: dict[str, Tensor] = {}
    if in_chans != file.in_chans:
        if file.in_chans != 3:
            raise CheckpointError(
                f"{report.source} is for {file.in_chans} input channels, which cannot be adapted; "
                f"load it with in_chans={file.in_chans}"
            )
        stem = f"backbone.{backbones.first_convolution(model.backbone)}"
        adapted[stem] = backbones.adapt_first_convolution(state[stem], in_chans)
    model.load_state_dict(state | fresh | adapted, assign=True)
    return model, replace(report, fresh=tuple(fresh), adapted=tuple(adapted), unused=unused)


def _fresh_classifiers(model: ISANet) -> dict[str, Tensor]:
    """Return newly initialised parameters for the last layer of each head, by key."""
    classifiers = {
        f"{name}.classifier": nn.Conv2d(
            *(head.classifier.in_channels, model.config.num_classes, 1),
            device="cpu",  # whatever the defaults are at the moment
            dtype=torch.float32,
        )
        for name, head in (("head", model.head), ("aux_head", model.aux_head))
        if head is not None
    }
    return {
        f"{name}.{key}": tensor
        for name, classifier in classifiers.items()
        for key, tensor in classifier.state_dict().items()
    }
