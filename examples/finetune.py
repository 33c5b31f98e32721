"""Fine-tune a model on custom images and masks, with a custom training loop.

    python examples/finetune.py DATA mine.safetensors isanet_resnet50os8_voc

DATA contains ``images/train``, ``masks/train`` (8-bit PNG, the value is the class id, 255 is
ignored), the same with ``val``, and ``classes.txt`` with a name per line. ``isanet-zoo train`` does
the same, and resumes, logs and evaluates; here each part can be replaced.
"""

import sys

import torch
from torch.utils.data import DataLoader

import isanet_zoo
from isanet_zoo.learning.batches import Augmented, EpochBatches
from isanet_zoo.learning.losses import segmentation_loss
from isanet_zoo.learning.schedules import decay
from isanet_zoo.learning.transforms import Augment


def main(data: str, target: str, name: str, epochs: str = "20", crop: str = "320") -> None:
    """Train, evaluate and save a model."""
    train = isanet_zoo.open_dataset("folder", data, "train")
    val = isanet_zoo.open_dataset("folder", data, "val")
    model = isanet_zoo.create_model(
        name, pretrained=True, num_classes=len(train.label_set), aux_loss=True
    )
    model.label_set = train.label_set
    model.freeze_norm()  # the statistics of small batches are poor
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)

    recipe = isanet_zoo.Recipe(epochs=int(epochs), batch_size=2, crop=(int(crop), int(crop)))
    batches = EpochBatches(len(train), recipe)
    loader = DataLoader(Augmented(train, Augment(recipe, model.preprocess)), batch_sampler=batches)
    optimizer = torch.optim.AdamW(
        model.param_groups(recipe.lr, recipe.head_multiplier), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: decay(recipe, step, batches.steps)
    )

    model.train()
    for step, (images, target_ids) in enumerate(loader, 1):
        output = model(images.to(device))  # ISANetOutput(out, aux), both (B, K, H, W)
        loss = segmentation_loss(output, target_ids.to(device), aux_weight=recipe.aux_weight)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % batches.per_epoch == 0:
            print(f"step {step} of {batches.steps}: loss {loss.item():.3f}")

    print(isanet_zoo.evaluate(model, val).table())
    isanet_zoo.save_model(model, target, dataset=train.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
