"""Every published ISANet weight, one line away, on a current PyTorch, loaded safely and exactly.

>>> import isanet_zoo
>>> isanet_zoo.get_weights("isanet_resnet50os8_voc").num_classes
21

Importing the package imports neither torch nor timm: each name below is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from isanet_zoo.version import __version__ as __version__

if TYPE_CHECKING:
    from isanet_zoo.engines.engine import DType as DType
    from isanet_zoo.errors import (
        CheckpointError as CheckpointError,
        DownloadError as DownloadError,
        EnvironmentProblem as EnvironmentProblem,
        ExportError as ExportError,
        InputError as InputError,
        IntegrityError as IntegrityError,
        ManifestError as ManifestError,
        OfflineError as OfflineError,
        SourceError as SourceError,
        UnknownModelError as UnknownModelError,
        UploadError as UploadError,
        ZooError as ZooError,
    )
    from isanet_zoo.export.onnx_file import export_onnx as export_onnx
    from isanet_zoo.factories import (
        isanet_efficientnet_lite0os8_camvid as isanet_efficientnet_lite0os8_camvid,
        isanet_resnet18os8_ade20k as isanet_resnet18os8_ade20k,
        isanet_resnet18os8_cityscapes as isanet_resnet18os8_cityscapes,
        isanet_resnet18os8_pascal_context as isanet_resnet18os8_pascal_context,
        isanet_resnet50os8_ade20k as isanet_resnet50os8_ade20k,
        isanet_resnet50os8_cityscapes as isanet_resnet50os8_cityscapes,
        isanet_resnet50os8_voc as isanet_resnet50os8_voc,
        isanet_resnet101os8_ade20k as isanet_resnet101os8_ade20k,
        isanet_resnet101os8_cityscapes as isanet_resnet101os8_cityscapes,
        isanet_resnet101os8_pascal_context as isanet_resnet101os8_pascal_context,
        isanet_resnet101os8_voc as isanet_resnet101os8_voc,
    )
    from isanet_zoo.imaging.reading import (
        ImageLike as ImageLike,
        LoadedImage as LoadedImage,
        read_image as read_image,
    )
    from isanet_zoo.imaging.segmentation import Segmentation as Segmentation
    from isanet_zoo.inference.explain import Explanation as Explanation
    from isanet_zoo.inference.predictor import (
        Predictor as Predictor,
        Progress as Progress,
        predict as predict,
    )
    from isanet_zoo.inference.views import Tile as Tile
    from isanet_zoo.learning.data import (
        Sample as Sample,
        SegmentationDataset as SegmentationDataset,
    )
    from isanet_zoo.learning.datasets import open_dataset as open_dataset
    from isanet_zoo.learning.evaluation import evaluate as evaluate
    from isanet_zoo.learning.metrics import (
        Scores as Scores,
        SegmentationMetrics as SegmentationMetrics,
    )
    from isanet_zoo.learning.report import EpochResult as EpochResult
    from isanet_zoo.learning.run import train as train
    from isanet_zoo.learning.trainer import Trainer as Trainer
    from isanet_zoo.manifest.config import (
        HeadConfig as HeadConfig,
        NetworkConfig as NetworkConfig,
        Preprocess as Preprocess,
    )
    from isanet_zoo.manifest.labels import LabelSet as LabelSet
    from isanet_zoo.manifest.lookup import get_weights as get_weights, list_models as list_models
    from isanet_zoo.manifest.own_classes import (
        ClassGroups as ClassGroups,
        OwnClass as OwnClass,
        OwnClasses as OwnClasses,
        merge_classes as merge_classes,
    )
    from isanet_zoo.manifest.recipe import Recipe as Recipe
    from isanet_zoo.manifest.weights import Weights as Weights
    from isanet_zoo.network.isanet import ISANet as ISANet, ISANetOutput as ISANetOutput
    from isanet_zoo.weights.acquire import download as download
    from isanet_zoo.weights.checkpoints import LoadReport as LoadReport
    from isanet_zoo.weights.convert import convert_checkpoint as convert_checkpoint
    from isanet_zoo.weights.saving import save_model as save_model
    from isanet_zoo.zoo import create_model as create_model


_NAMES = {  # module -> what the package offers from it; a test compares this with the imports above
    "engines.engine": ("DType",),
    "errors": (
        "CheckpointError",
        "DownloadError",
        "EnvironmentProblem",
        "ExportError",
        "InputError",
        "IntegrityError",
        "ManifestError",
        "OfflineError",
        "SourceError",
        "UnknownModelError",
        "UploadError",
        "ZooError",
    ),
    "export.onnx_file": ("export_onnx",),
    "factories": (
        "isanet_efficientnet_lite0os8_camvid",
        "isanet_resnet18os8_ade20k",
        "isanet_resnet18os8_cityscapes",
        "isanet_resnet18os8_pascal_context",
        "isanet_resnet50os8_ade20k",
        "isanet_resnet50os8_cityscapes",
        "isanet_resnet50os8_voc",
        "isanet_resnet101os8_ade20k",
        "isanet_resnet101os8_cityscapes",
        "isanet_resnet101os8_pascal_context",
        "isanet_resnet101os8_voc",
    ),
    "imaging.reading": ("ImageLike", "LoadedImage", "read_image"),
    "imaging.segmentation": ("Segmentation",),
    "inference.explain": ("Explanation",),
    "inference.predictor": ("Predictor", "Progress", "predict"),
    "inference.views": ("Tile",),
    "learning.data": ("Sample", "SegmentationDataset"),
    "learning.datasets": ("open_dataset",),
    "learning.evaluation": ("evaluate",),
    "learning.metrics": ("Scores", "SegmentationMetrics"),
    "learning.report": ("EpochResult",),
    "learning.run": ("train",),
    "learning.trainer": ("Trainer",),
    "manifest.config": ("HeadConfig", "NetworkConfig", "Preprocess"),
    "manifest.labels": ("LabelSet",),
    "manifest.lookup": ("get_weights", "list_models"),
    "manifest.own_classes": ("ClassGroups", "OwnClass", "OwnClasses", "merge_classes"),
    "manifest.recipe": ("Recipe",),
    "manifest.weights": ("Weights",),
    "network.isanet": ("ISANet", "ISANetOutput"),
    "weights.acquire": ("download",),
    "weights.checkpoints": ("LoadReport",),
    "weights.convert": ("convert_checkpoint",),
    "weights.saving": ("save_model",),
    "zoo": ("create_model",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # for the next access
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
