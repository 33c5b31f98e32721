"""Average weights of one model, such as an early and a late epoch of one run, into a new file.

    python examples/mean_of_weights.py NAME mean.safetensors early.safetensors late.safetensors

The mean is often better than a late epoch on images unlike those of the training, and worse on
images like them: evaluate both (Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv
2109.01903).
"""

import sys

import torch

import isanet_zoo
from isanet_zoo.weights.description import read_description


def main(name: str, target: str, *sources: str) -> None:
    """Write the mean of the sources' tensors to `target`."""
    models = [isanet_zoo.create_model(name, weights=path, aux_loss=True) for path in sources]
    states = [model.state_dict() for model in models]
    mean = {
        key: torch.stack([state[key] for state in states]).mean(0)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in states[-1].items()
    }
    models[-1].load_state_dict(mean)
    description = read_description(sources[-1])
    isanet_zoo.save_model(
        models[-1],
        target,
        dataset=description.dataset if description else "",
        recipe=description.recipe if description else None,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
