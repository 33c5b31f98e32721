"""ISANet on torch.hub: ``torch.hub.load(<repository>, "isanet_resnet50os8_voc")``."""

from isanet_zoo.factories import (
    isanet_efficientnet_lite0os8_camvid,
    isanet_resnet18os8_ade20k,
    isanet_resnet18os8_cityscapes,
    isanet_resnet18os8_pascal_context,
    isanet_resnet50os8_ade20k,
    isanet_resnet50os8_cityscapes,
    isanet_resnet50os8_voc,
    isanet_resnet101os8_ade20k,
    isanet_resnet101os8_cityscapes,
    isanet_resnet101os8_pascal_context,
    isanet_resnet101os8_voc,
)

__all__ = [
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
]

dependencies = ["torch", "timm", "huggingface_hub", "safetensors", "numpy", "PIL"]
