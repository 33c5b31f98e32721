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
    )
    from isanet_zoo.errors import (
        DownloadError as DownloadError,
    )
    from isanet_zoo.errors import (
        EnvironmentProblem as EnvironmentProblem,
    )
    from isanet_zoo.errors import (
        InputError as InputError,
    )
    from isanet_zoo.errors import (
        IntegrityError as IntegrityError,
    )
    from isanet_zoo.errors import (
        ManifestError as ManifestError,
    )
    from isanet_zoo.errors import (
        OfflineError as OfflineError,
    )
    from isanet_zoo.errors import (
        UnknownModelError as UnknownModelError,
    )
    from isanet_zoo.errors import (
        ZooError as ZooError,
    )
    from isanet_zoo.factories import (
        isanet_resnet50os8_ade20k as isanet_resnet50os8_ade20k,
    )
    from isanet_zoo.factories import (
        isanet_resnet50os8_cityscapes as isanet_resnet50os8_cityscapes,
    )
    from isanet_zoo.factories import (
        isanet_resnet50os8_voc as isanet_resnet50os8_voc,
    )
    from isanet_zoo.factories import (
        isanet_resnet101os8_ade20k as isanet_resnet101os8_ade20k,
    )
    from isanet_zoo.factories import (
        isanet_resnet101os8_cityscapes as isanet_resnet101os8_cityscapes,
    )
    from isanet_zoo.factories import (
        isanet_resnet101os8_voc as isanet_resnet101os8_voc,
    )
    from isanet_zoo.inference.segmentation import Segmentation as Segmentation
    from isanet_zoo.labels import LabelSet as LabelSet
    from isanet_zoo.network.config import (
        HeadConfig as HeadConfig,
    )
    from isanet_zoo.network.config import (
        NetworkConfig as NetworkConfig,
    )
    from isanet_zoo.network.config import (
        Preprocess as Preprocess,
    )
    from isanet_zoo.network.isanet import ISANet as ISANet
    from isanet_zoo.network.isanet import ISANetOutput as ISANetOutput
    from isanet_zoo.weights.acquire import (
        convert_checkpoint as convert_checkpoint,
    )
    from isanet_zoo.weights.acquire import (
        download as download,
    )
    from isanet_zoo.weights.manifest import (
        Weights as Weights,
    )
    from isanet_zoo.weights.manifest import (
        get_weights as get_weights,
    )
    from isanet_zoo.weights.manifest import (
        list_models as list_models,
    )
    from isanet_zoo.zoo import (
        LoadReport as LoadReport,
    )
    from isanet_zoo.zoo import (
        Predictor as Predictor,
    )
    from isanet_zoo.zoo import (
        create_model as create_model,
    )
    from isanet_zoo.zoo import (
        predict as predict,
    )

__version__ = "0.1.0"

_NAMES = {  # module -> what the package offers from it; a test compares this with the imports above
    "errors": (
        "CheckpointError",
        "DownloadError",
        "EnvironmentProblem",
        "InputError",
        "IntegrityError",
        "ManifestError",
        "OfflineError",
        "UnknownModelError",
        "ZooError",
    ),
    "factories": (
        "isanet_resnet50os8_ade20k",
        "isanet_resnet50os8_cityscapes",
        "isanet_resnet50os8_voc",
        "isanet_resnet101os8_ade20k",
        "isanet_resnet101os8_cityscapes",
        "isanet_resnet101os8_voc",
    ),
    "inference.segmentation": ("Segmentation",),
    "labels": ("LabelSet",),
    "network.config": ("HeadConfig", "NetworkConfig", "Preprocess"),
    "network.isanet": ("ISANet", "ISANetOutput"),
    "weights.acquire": ("convert_checkpoint", "download"),
    "weights.manifest": ("Weights", "get_weights", "list_models"),
    "zoo": ("LoadReport", "Predictor", "create_model", "predict"),
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
