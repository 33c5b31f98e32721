"""Every published ISANet weight, one line away, on a current PyTorch, loaded safely and exactly.

>>> import isanet_zoo
>>> isanet_zoo.get_weights("isanet_resnet50os8_voc").num_classes
21

Importing the package imports neither torch nor timm: each name below is fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from isanet_zoo.exporting import export_onnx as export_onnx
    from isanet_zoo.factories import (
        isanet_efficientnet_lite0os8_camvid as isanet_efficientnet_lite0os8_camvid,
        isanet_resnet50os8_ade20k as isanet_resnet50os8_ade20k,
        isanet_resnet50os8_cityscapes as isanet_resnet50os8_cityscapes,
        isanet_resnet50os8_voc as isanet_resnet50os8_voc,
        isanet_resnet101os8_ade20k as isanet_resnet101os8_ade20k,
        isanet_resnet101os8_cityscapes as isanet_resnet101os8_cityscapes,
        isanet_resnet101os8_voc as isanet_resnet101os8_voc,
    )
    from isanet_zoo.inference.segmentation import Segmentation as Segmentation
    from isanet_zoo.labels import LabelSet as LabelSet
    from isanet_zoo.learning.data import (
        Sample as Sample,
        SegmentationDataset as SegmentationDataset,
        open_dataset as open_dataset,
    )
    from isanet_zoo.learning.evaluation import evaluate as evaluate
    from isanet_zoo.learning.metrics import (
        Scores as Scores,
        SegmentationMetrics as SegmentationMetrics,
    )
    from isanet_zoo.learning.trainer import Trainer as Trainer
    from isanet_zoo.learning.training import train as train
    from isanet_zoo.network.config import (
        HeadConfig as HeadConfig,
        NetworkConfig as NetworkConfig,
        Preprocess as Preprocess,
    )
    from isanet_zoo.network.isanet import ISANet as ISANet, ISANetOutput as ISANetOutput
    from isanet_zoo.recipe import Recipe as Recipe
    from isanet_zoo.weights.acquire import (
        convert_checkpoint as convert_checkpoint,
        download as download,
    )
    from isanet_zoo.weights.cards import save_model as save_model
    from isanet_zoo.weights.manifest import (
        Weights as Weights,
        get_weights as get_weights,
        list_models as list_models,
    )
    from isanet_zoo.weights.reports import LoadReport as LoadReport
    from isanet_zoo.zoo import (
        Predictor as Predictor,
        create_model as create_model,
        predict as predict,
    )

__version__ = "0.1.0"

_NAMES = {  # module -> what the package offers from it; a test compares this with the imports above
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
    "exporting": ("export_onnx",),
    "factories": (
        "isanet_efficientnet_lite0os8_camvid",
        "isanet_resnet50os8_ade20k",
        "isanet_resnet50os8_cityscapes",
        "isanet_resnet50os8_voc",
        "isanet_resnet101os8_ade20k",
        "isanet_resnet101os8_cityscapes",
        "isanet_resnet101os8_voc",
    ),
    "inference.segmentation": ("Segmentation",),
    "labels": ("LabelSet",),
    "learning.data": ("Sample", "SegmentationDataset", "open_dataset"),
    "learning.evaluation": ("evaluate",),
    "learning.metrics": ("Scores", "SegmentationMetrics"),
    "learning.trainer": ("Trainer",),
    "learning.training": ("train",),
    "network.config": ("HeadConfig", "NetworkConfig", "Preprocess"),
    "network.isanet": ("ISANet", "ISANetOutput"),
    "recipe": ("Recipe",),
    "weights.acquire": ("convert_checkpoint", "download"),
    "weights.cards": ("save_model",),
    "weights.manifest": ("Weights", "get_weights", "list_models"),
    "weights.reports": ("LoadReport",),
    "zoo": ("Predictor", "create_model", "predict"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # next time, no detour
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
