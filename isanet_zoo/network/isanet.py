"""ISANet: an encoder, interlaced sparse self-attention, a classifier.

Letters in shapes: B batch, C channels, K classes, H W image, h w feature map (1/8 of the image).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from typing_extensions import Self, Unpack

from isanet_zoo.errors import InputError
from isanet_zoo.manifest.config import HeadConfig, NetworkConfig, Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.weights import ModelFacts, Weights
from isanet_zoo.network import backbones
from isanet_zoo.network.exporting import check_sides
from isanet_zoo.network.head import AuxiliaryHead, ISAHead
from isanet_zoo.network.resize import resize


class ISANetOutput(NamedTuple):
    """Output of a network with an auxiliary head in training mode."""

    out: Tensor  # (B, K, H, W)
    aux: Tensor  # (B, K, H, W)


class ISANet(nn.Module):
    """ISANet over any timm encoder.

    Args:
        backbone: name of a timm model that supports `features_only` and `output_stride=8`.
        num_classes: K.
        in_chans: channels of the images; `predict` supports 3 only.
        aux_loss: build the auxiliary head.
        pretrained_backbone: load timm's ImageNet weights into the encoder; they are downloaded.
        head: configuration of both heads.
        label_set: the K classes; numbered names if None.
        preprocess: preparation of images; ImageNet's normalisation and no resizing if None.

    Attributes:
        config: configuration of the network.
        weights: the manifest's record of the weights that were loaded, or None.
        load_report: outcome of loading, see `LoadReport`; None if nothing was loaded.
        origin: `Description` of the weights that were loaded, or None.

    Raises:
        InputError: the encoder is unknown or unsuitable, or a number is out of range.
        DownloadError: timm's weights cannot be downloaded.

    Example:
        >>> import torch
        >>> model = ISANet("test_resnet", num_classes=5).eval()
        >>> model(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 5, 64, 96])
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        in_chans: int = 3,
        aux_loss: bool = False,
        pretrained_backbone: bool = False,
        head: HeadConfig | None = None,
        label_set: LabelSet | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        super().__init__()
        head = head or HeadConfig()
        self.config = NetworkConfig(backbone, num_classes, in_chans, head)
        self.label_set = label_set or LabelSet.generic(num_classes)
        self.preprocess = preprocess or Preprocess()
        if not isinstance(self.label_set, LabelSet) or len(self.label_set) != num_classes:
            raise InputError(f"label_set is not a LabelSet of {num_classes} classes")
        if not isinstance(self.preprocess, Preprocess):
            raise InputError(f"preprocess is a {type(preprocess).__name__}, not a Preprocess")
        self.weights: Weights | None = None
        self.load_report: Any = None
        self.origin: Any = None
        self.backbone = backbones.create_backbone(
            backbone, in_chans=in_chans, pretrained=pretrained_backbone
        )
        aux_width, width = backbones.widths(self.backbone)
        self.head = ISAHead(width, num_classes, head)
        self.aux_head = AuxiliaryHead(aux_width, num_classes, head) if aux_loss else None
        self._frozen: set[str] = set()
        self._frozen_norm = False

    @classmethod
    def from_config(
        cls,
        config: NetworkConfig,
        *,
        aux_loss: bool = False,
        label_set: LabelSet | None = None,
        preprocess: Preprocess | None = None,
    ) -> Self:
        """Build the network that a record describes, with newly initialised parameters."""
        return cls(
            config.backbone,
            config.num_classes,
            in_chans=config.in_chans,
            aux_loss=aux_loss,
            head=config.head,
            label_set=label_set,
            preprocess=preprocess,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        progress: bool = True,
    ) -> Self:
        """Load a saved or published network with its classes and preprocessing, in `eval()` mode.

        Only `config.json` and `model.safetensors` are read; neither can contain code.

        Args:
            source: a folder, or a repository of the Hugging Face Hub, ``"org/repo"`` or
                ``"hf-hub:org/repo"``. A folder of that name comes first without the prefix.
            revision: a branch, tag or commit of the repository; its main branch if None.
            token: for a private repository; the one that is stored on this machine if None.
            progress: show progress bars on stderr.

        Raises:
            InputError: `source` is neither a folder nor the name of a repository.
            DownloadError: the Hub has no such repository, refuses access or cannot be reached.
            CheckpointError: a file or field is missing or wrong, or a tensor does not fit.
            IntegrityError: the tensors are not those that the config describes.
        """
        from isanet_zoo.hub import saved

        return saved.from_pretrained(cls, source, revision=revision, token=token, progress=progress)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        force: bool = False,
        **facts: Unpack[ModelFacts],
    ) -> Path:
        """Write the network into a folder that `from_pretrained` loads; return the folder.

        Args:
            folder: created if it does not exist. Files of an earlier save are replaced. Its
                `model.safetensors` also loads alone, by ``create_model(name, weights=FILE)``.
            force: also replace files that this library did not write.
            facts: `dataset`, `recipe`, `metrics` and `licence`, see `ModelFacts`; by default those
                of the loaded weights, the licence also after these were changed.

        Raises:
            InputError: the folder cannot be written, or other files have these names.
            CheckpointError: the network could not be loaded again, such as with NaN in it.
        """
        from isanet_zoo.hub import saved

        return saved.save_pretrained(self, folder, force=force, **facts)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Upload an ISANet",
        **facts: Unpack[ModelFacts],
    ) -> str:
        """Publish the network on the Hugging Face Hub in one commit; return the commit.

        Args:
            repo: the repository, ``"org/repo"``; created if it does not exist.
            private: create it so that only its owners see it.
            token: with write access; the one that is stored on this machine if None.
            commit_message: title of the commit.
            facts: see `save_pretrained`.

        Raises:
            InputError: `repo` is no repository name.
            UploadError: the Hub refused the upload or cannot be reached.
            CheckpointError: the network could not be loaded again, see `save_pretrained`.
        """
        from isanet_zoo.hub import saved

        return saved.push_to_hub(
            self, repo, private=private, token=token, commit_message=commit_message, **facts
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names."""
        return self.label_set.names

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """The K colours, as (red, green, blue) in 0..255."""
        return self.label_set.colours

    def forward_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's last two maps, (B, C', h, w) and (B, C'', h, w)."""
        check_sides(images)
        low, high = self.backbone(images)
        return low, high

    def forward_logits(self, images: Tensor) -> Tensor:
        """Return the logits at 1/8 of the image, (B, K, h, w), for (B, 3, H, W)."""
        # No name for the encoder's map, by far the largest, so that it is freed before `classify`.
        return self.head.classify(self.head.reduce(self.forward_features(images)[1]))

    def forward(self, images: Tensor) -> Tensor | ISANetOutput:
        """Segment a batch of prepared images.

        Args:
            images: (B, 3, H, W) float, normalised by `self.preprocess`. Programs of
                `torch.export` need sides of 9 pixels or more.

        Returns:
            Logits (B, K, H, W), or `ISANetOutput` in training mode with an auxiliary head.
        """
        size = (images.shape[-2], images.shape[-1])
        aux_features, features = self.forward_features(images)
        out = self.resize(self.head(features), size)
        if self.aux_head is None or not self.training:
            return out
        return ISANetOutput(out, self.resize(self.aux_head(aux_features), size))

    def resize(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize logits (B, K, h, w) to `size`, bilinearly, as the family of the weights does."""
        return resize(logits, size, self.config.head.resize)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        if self._frozen_norm:
            for norm in self._norms():
                norm.eval()
        return self

    def freeze_backbone(self) -> Self:
        """Freeze the encoder: its parameters and running statistics."""
        return self.freeze("backbone")

    def freeze(self, *parts: str) -> Self:
        """Freeze parts of the network, such as ``"backbone.layer1"``, as `freeze_backbone`.

        Raises:
            InputError: the network has no such part.
        """
        try:
            modules = [self.get_submodule(name) for name in parts]
        except AttributeError as error:
            raise InputError(f"cannot freeze {', '.join(parts)}: {error}") from error
        for module in modules:
            module.requires_grad_(False)
        self._frozen.update(parts)
        return self.train(self.training)

    def freeze_norm(self) -> Self:
        """Freeze every batch norm: its parameters and running statistics."""
        self._frozen_norm = True
        for norm in self._norms():
            norm.requires_grad_(False)
        return self.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute encoder stages and attention for gradients, to save memory in training.

        Batch norms that are recomputed update their running statistics twice per step, which
        nearly doubles their momentum; `freeze_norm` avoids that.
        """
        backbones.set_grad_checkpointing(self.backbone, enable)
        self.head.grad_checkpointing = enable

    def param_groups(self, lr: float, head_multiplier: float = 1.0) -> list[dict[str, Any]]:
        """Return the trainable parameters as groups for an optimiser: encoder and heads.

        The learning rate of the heads is `lr * head_multiplier`.
        """
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "heads": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups["backbone" if name.startswith("backbone.") else "heads"].append(parameter)
        rates = {"backbone": lr, "heads": lr * head_multiplier}
        return [{"name": n, "params": groups[n], "lr": rates[n]} for n in rates if groups[n]]

    def _norms(self) -> Iterator[nn.Module]:
        norm = nn.modules.batchnorm._NormBase
        return (module for module in self.modules() if isinstance(module, norm))
