"""Fine-tune on custom images and masks, and log every epoch to TensorBoard.

    pip install tensorboard
    python examples/tensorboard_log.py DATA run
    tensorboard --logdir run

DATA is the folder of ``isanet-zoo train``; its validation images are used.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

import isanet_zoo


def main(data: str, out: str, epochs: str = "20", crop: str = "320") -> None:
    """Train the built-in model, and log losses, scores and a drawing of the predictions."""
    train, val = (isanet_zoo.open_dataset("folder", data, split) for split in ("train", "val"))
    name, classes = "isanet_efficientnet_lite0os8_camvid", len(train.label_set)
    model = isanet_zoo.create_model(name, pretrained=True, num_classes=classes, aux_loss=True)
    model.label_set = train.label_set
    recipe = isanet_zoo.Recipe(epochs=int(epochs), batch_size=2, crop=(int(crop), int(crop)))
    with SummaryWriter(Path(out) / "tensorboard") as writer:

        def log(result: isanet_zoo.EpochResult) -> None:
            epoch, step = result.epoch, result.epoch.step
            values = {"loss": epoch.loss, "lr": epoch.lr}
            if result.scores is not None:
                values |= {"mIoU": result.scores.miou}
                values |= {f"IoU/{label}": iou for label, iou in result.scores.iou.items()}
            for title, value in values.items():
                writer.add_scalar(title, value, step)
            if epoch == result.best:  # its drawing is new
                drawing = np.asarray(Image.open(result.folder / "predictions.png"))  # (H, W, 3)
                writer.add_image("predictions", drawing, step, dataformats="HWC")

        device = "cuda" if torch.cuda.is_available() else "cpu"
        isanet_zoo.train(model, train, recipe, out, validation=val, device=device, on_epoch=log)


if __name__ == "__main__":
    main(*sys.argv[1:])
