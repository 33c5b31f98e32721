"""Save a model, or publish it on the Hugging Face hub, and get the very same one back.

    python examples/hub_round_trip.py                  the built-in model, through a folder
    python examples/hub_round_trip.py ORG/NAME         through a private repository of yours

For a repository, sign in first: ``hf auth login``.
"""

import sys
import tempfile
from pathlib import Path

import torch

import isanet_zoo

PHOTO = Path(__file__).with_name("street.jpg")


def main(repo: str | None = None) -> None:
    """Send it there, bring it back, compare."""
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

    # Classes, colours and preprocessing come along; so does where the weights are from.
    assert again.label_set == model.label_set
    assert again.preprocess == model.preprocess
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    before, after = (next(isanet_zoo.Predictor(m).stream(PHOTO)) for m in (model, again))
    assert (before.labels == after.labels).all()
    print("the same tensors, classes and labels:", ", ".join(again.classes))


if __name__ == "__main__":
    main(*sys.argv[1:])
