"""Save a model, or publish it on the Hugging Face Hub, and load an identical one.

    python examples/hub_round_trip.py                  the built-in model, through a folder
    python examples/hub_round_trip.py ORG/NAME         through a private repository

For a repository, sign in first: ``hf auth login``.
"""

import sys
import tempfile
from pathlib import Path

import torch

import isanet_zoo

PHOTO = Path(__file__).with_name("street.jpg")


def main(repo: str | None = None) -> None:
    """Save or publish, load and compare."""
    model = isanet_zoo.isanet_efficientnet_lite0os8_camvid(pretrained=True)

    with tempfile.TemporaryDirectory() as folder:
        if repo:
            commit = model.push_to_hub(repo, private=True)
            print(f"published as hf-hub:{repo}@{commit}")
            again = isanet_zoo.ISANet.from_pretrained(repo, revision=commit)
        else:
            model.save_pretrained(folder)
            print("saved as", ", ".join(sorted(file.name for file in Path(folder).iterdir())))
            again = isanet_zoo.ISANet.from_pretrained(folder)

    # Classes, colours, preprocessing and the origin of the weights are saved, too.
    assert again.label_set == model.label_set
    assert again.preprocess == model.preprocess
    tensors = again.state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[key]), key
    before, after = (next(isanet_zoo.Predictor(m).stream(PHOTO)) for m in (model, again))
    assert (before.labels == after.labels).all()
    print("the same tensors, classes and labels:", ", ".join(again.classes))


if __name__ == "__main__":
    main(*sys.argv[1:])
