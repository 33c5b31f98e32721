"""Fine-tune on custom images and masks, and log every epoch to Weights & Biases, offline.

    pip install wandb
    python examples/wandb_log.py DATA run
    wandb sync run/wandb/offline-run-*

DATA is the folder of ``isanet-zoo train``; its validation images are used. Nothing is uploaded
before ``wandb sync``; remove ``mode="offline"`` to upload during the training.
"""

import sys
from dataclasses import asdict
from pathlib import Path

import torch
import wandb

import isanet_zoo


def main(data: str, out: str, epochs: str = "20", crop: str = "320") -> None:
    """Train the built-in model, and log losses, scores and a drawing of the predictions."""
    train, val = (isanet_zoo.open_dataset("folder", data, split) for split in ("train", "val"))
    name, classes = "isanet_efficientnet_lite0os8_camvid", len(train.label_set)
    model = isanet_zoo.create_model(name, pretrained=True, num_classes=classes, aux_loss=True)
    model.label_set = train.label_set
    recipe = isanet_zoo.Recipe(epochs=int(epochs), batch_size=2, crop=(int(crop), int(crop)))
    Path(out).mkdir(parents=True, exist_ok=True)
    with wandb.init(project="isanet", mode="offline", dir=out, config=asdict(recipe)) as run:

        def log(result: isanet_zoo.EpochResult) -> None:
            epoch = result.epoch
            values: dict[str, object] = {"epoch": epoch.epoch, "loss": epoch.loss, "lr": epoch.lr}
            if result.scores is not None:
                values |= {"mIoU": result.scores.miou}
                values |= {f"IoU/{label}": iou for label, iou in result.scores.iou.items()}
            if epoch == result.best:  # its drawing is new
                values["predictions"] = wandb.Image(str(result.folder / "predictions.png"))
            run.log(values, step=epoch.step)

        device = "cuda" if torch.cuda.is_available() else "cpu"
        isanet_zoo.train(model, train, recipe, out, validation=val, device=device, on_epoch=log)


if __name__ == "__main__":
    main(*sys.argv[1:])
