"""Networks of the zoo by name: `create_model`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isanet_zoo.errors import CheckpointError, InputError, UnknownModelError, printable
from isanet_zoo.hub.transfer import PREFIX
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.lookup import get_weights, load_manifest
from isanet_zoo.manifest.own_classes import name_classes
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.acquire import load_published
from isanet_zoo.weights.checkpoints import LoadReport, load_encoder
from isanet_zoo.weights.convert import load_matching, load_own
from isanet_zoo.weights.description import Description, describe_published, read_description
from isanet_zoo.weights.loading import Loaded, load_network

logger = logging.getLogger(__name__)

FILE_SUFFIXES = {".ckpt", ".pdparams", ".pt", ".pth", ".safetensors"}  # of paths, not of tags


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | LabelSet | None = None,
    in_chans: int = 3,
    aux_loss: bool = False,
    pretrained_backbone: bool | str | os.PathLike[str] = False,
    progress: bool = True,
) -> ISANet:
    """Build a model of the zoo; with `pretrained` or `weights`, load its weights and set `eval()`.

    Without either, nothing is downloaded and all parameters are newly initialised.

    Args:
        name: a name as `list_models` returns it; a tag (``name.tag``) selects other weights than
            the default. With `pretrained` it may also be a repository of the Hugging Face Hub,
            written ``"hf-hub:org/repo[@revision]"``, or a file or folder that describes itself.
        pretrained: load the published weights of that name; they are downloaded on first use.
        weights: instead of `pretrained`: another tag of this model, a file (``.safetensors``, or a
            checkpoint of any family that published this model, which is checked and converted), or
            a folder that `save_pretrained` or `train` wrote, or a repository,
            ``"hf-hub:org/repo[@revision]"``. Files and repositories that this library
            wrote include their classes and preprocessing; for others, pass the closest published
            weights as `name`.
        num_classes: K; that of the weights if None. Another number initialises the classifiers.
        classes: instead, the names of the K classes. Those that the weights have, too, keep their
            rows of the classifiers; `load_report` lists these and the new ones.
        in_chans: channels of the images; others than 3 adapt the first convolution by timm's rule.
        aux_loss: build the auxiliary head, for training.
        pretrained_backbone: load weights into the encoder only: timm's from ImageNet, or a file of
            them, also under the names of mmsegmentation and sssegmentation, as in recipes.
        progress: show a progress bar on stderr while files are downloaded.

    Returns:
        The network. Its `load_report` lists what was loaded, `weights` is the manifest's record.

    Raises:
        UnknownModelError: there is no such model or tag.
        InputError: an argument is out of range, two contradict each other, or a file does not
            exist.
        DownloadError: the weights are not cached and no source has them.
        CheckpointError: a file or repository given as `weights` does not hold this network's
            tensors, or was made from another model.
        IntegrityError: the tensors of a repository are not those that its config describes.

    Example:
        >>> create_model("isanet_resnet50os8_voc", num_classes=5).config.num_classes
        5
    """
    _check_flags(pretrained=pretrained, aux_loss=aux_loss)
    from_hub = isinstance(name, str) and name.startswith(PREFIX)
    _refuse_url(name, weights, pretrained_backbone)
    record = None if from_hub or _is_path(name) else get_weights(name)
    _check(name, record, pretrained, weights, pretrained_backbone)
    if classes is not None and num_classes is not None:
        raise InputError(f"num_classes={num_classes} and classes both set K; pass one")
    if record is not None and not pretrained and weights is None:
        return _build(record, num_classes, classes, in_chans, aux_loss, pretrained_backbone)
    if record is None:
        loaded = _load_hub(name, None, progress) if from_hub else _load_path(Path(name), progress)
    elif weights is not None and str(weights).startswith(PREFIX):
        loaded = _load_hub(str(weights), record, progress)
    else:
        loaded = _load_file(record, weights, progress)
    model = load_network(
        ISANet,
        loaded,
        num_classes=num_classes,
        classes=classes,
        in_chans=in_chans,
        aux_loss=aux_loss,
    )
    logger.info("%s: %s", printable(name, 500), model.load_report)
    return model


def describe_model(name: str, *, progress: bool = True) -> Description:
    """Return the description of what ``create_model(name, pretrained=True)`` loads.

    Raises:
        ZooError: as `create_model`, except for errors of the tensors, which are not read.
    """
    from isanet_zoo.hub.saved import read_config

    _refuse_url(name)
    if isinstance(name, str) and name.startswith(PREFIX):
        return read_config(name, progress=progress)
    if not _is_path(name):
        return describe_published(get_weights(name))
    path = _find_path(Path(name))
    return read_config(path.absolute()) if path.is_dir() else _read_own(path)


def _check_flags(**flags: object) -> None:
    """Raise InputError for arguments that are neither True nor False."""
    for flag, value in flags.items():
        if not isinstance(value, bool):
            raise InputError(f"{flag} is {value!r}; it must be True or False")


def _check(
    name: str,
    record: Weights | None,
    pretrained: bool,
    weights: object,
    pretrained_backbone: object,
) -> None:
    """Raise InputError for arguments of a wrong type, or that contradict each other."""
    if not isinstance(pretrained_backbone, (bool, str, os.PathLike)) or pretrained_backbone == "":
        raise InputError(
            f"pretrained_backbone is {pretrained_backbone!r}; it must be True, False or a file"
        )
    if not isinstance(weights, (str, os.PathLike, type(None))) or weights == "":
        kind = "empty" if isinstance(weights, str) else f"a {type(weights).__name__}"
        raise InputError(f"weights is {kind}; it must be a tag, a path or a repository")
    if pretrained and weights is not None:
        raise InputError(
            f"pretrained=True and weights={str(weights)!r} both select weights; pass one"
        )
    if pretrained_backbone and (pretrained or weights is not None):
        raise InputError(
            "pretrained_backbone loads the encoder only, pretrained and weights load all "
            "parameters; pass one"
        )
    if record is None and not pretrained:
        raise InputError(
            f"{printable(name, 500)} has weights; load them (pretrained=True), or pass the name of "
            "a model"
        )


def _build(
    record: Weights,
    num_classes: int | None,
    classes: Sequence[str] | LabelSet | None,
    in_chans: int,
    aux_loss: bool,
    pretrained_backbone: bool | str | os.PathLike[str],
) -> ISANet:
    """Build a network with newly initialised parameters, apart from the encoder's if requested."""
    label_set = record.label_set if classes is None else name_classes(classes, record.label_set)
    count = len(label_set) if num_classes is None else num_classes
    network = replace(record.network, num_classes=count, in_chans=in_chans)
    model = ISANet(
        network.backbone,
        network.num_classes,
        in_chans=network.in_chans,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone is True,
        head=network.head,
        label_set=label_set if len(label_set) == count else None,
        preprocess=record.preprocess,
    )
    if not isinstance(pretrained_backbone, bool):
        load_encoder(model, pretrained_backbone)
    return model


def _load_hub(address: str, record: Weights | None, progress: bool) -> Loaded:
    """Load a repository of the Hub, which describes itself.

    Raises:
        CheckpointError: it was made from another model than that of `record`.
    """
    from isanet_zoo.hub.saved import read_saved

    loaded = read_saved(address, cls=ISANet, progress=progress)
    if record and loaded.description.model not in ("", record.model):
        raise CheckpointError(
            f"{address} was made from {loaded.description.model}, not from {record.model}"
        )
    return loaded


def _load_file(record: Weights, weights: str | os.PathLike[str] | None, progress: bool) -> Loaded:
    """Load published weights, or a file of the user's own."""
    record, path = _find_weights(record, weights)
    path = path and _best_of_run(path)
    if path is not None and path.is_dir():
        return _load_hub(str(path), record, progress)
    if path is None:
        checkpoint, path, trust = load_published(record, progress=progress)
        description = describe_published(record)
        return Loaded(checkpoint.state, description, LoadReport(path, trust))
    checkpoint, description = load_own(path, record)
    report = LoadReport(path, "local", checkpoint.layout.family)
    return Loaded(checkpoint.state, description, report)


def _refuse_url(*values: object) -> None:
    """Raise InputError for the URL of a file."""
    for value in values:
        if isinstance(value, str) and "://" in value and not value.startswith(PREFIX):
            raise InputError(f"{value!r} is a URL; download the file and pass its path")


def _is_path(name: object) -> bool:
    """Return True for the path of a file or folder that is not also a name of the zoo."""
    if not isinstance(name, str) or name.startswith(PREFIX) or name in load_manifest():
        return False
    return Path(name).suffix in FILE_SUFFIXES or os.path.lexists(name)


def _best_of_run(path: Path) -> Path:
    """Return the best weights in the folder of a training run, other paths as they are."""
    best = path / "best.safetensors"
    return best if path.is_dir() and best.is_file() else path


def _load_path(path: Path, progress: bool) -> Loaded:
    """Load a file or folder that describes itself.

    Raises:
        InputError: there is no such file, or it does not describe itself.
        CheckpointError: it cannot be read safely, or its tensors are not those it describes.
    """
    path = _find_path(path)
    if path.is_dir():
        return _load_hub(os.fspath(path.absolute()), None, progress)
    own = _read_own(path)
    checkpoint = load_matching(path, {"zoo": own.network}, own)
    aux_head = any(key.startswith("aux_head.") for key in checkpoint.state)
    return Loaded(checkpoint.state, replace(own, aux_head=aux_head), LoadReport(path, "local"))


def _find_path(path: Path) -> Path:
    """Return an existing path, or the best weights of the run that is in this folder."""
    if not os.path.lexists(path):
        raise InputError(f"{path}: there is no such file")
    return _best_of_run(path)


def _read_own(path: Path) -> Description:
    """Return the description in a file, which must have one."""
    if path.suffix not in FILE_SUFFIXES:
        raise InputError(
            f"{path} is neither a model of the zoo nor a weight file "
            f"({', '.join(sorted(FILE_SUFFIXES))})"
        )
    if (own := read_description(path)) is None:
        raise InputError(
            f"{path} does not describe its network; pass it as weights, with the name of the model "
            "that is closest to it"
        )
    return own


def _find_weights(
    record: Weights, weights: str | os.PathLike[str] | None
) -> tuple[Weights, Path | None]:
    """Return the record of the weights, and the path of a file of the user's own.

    Raises:
        InputError: `weights` is a path, and there is no such file.
        UnknownModelError: `weights` is neither a tag nor a file.
    """
    same_model = [other for other in load_manifest().values() if other.model == record.model]
    chosen = next((o for o in same_model if weights in (o.tag, o.name, f"{o.model}.{o.tag}")), None)
    if weights is None or chosen:
        return chosen or record, None
    path = Path(weights)
    if os.path.lexists(path):
        return record, path
    if not isinstance(weights, str) or path.suffix in FILE_SUFFIXES or len(path.parts) > 1:
        raise InputError(f"weights {str(weights)!r}: there is no such file")
    raise UnknownModelError(
        f"weights {str(weights)!r} are neither a file nor a tag of {record.model}, "
        f"which has {', '.join(other.tag for other in same_model)}"
    )
