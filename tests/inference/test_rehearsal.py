"""The whole path of a prediction on CUDA, rehearsed with fake tensors on machines without a GPU.

`FakeTensorMode` computes shapes, types and devices only. It raises an error where an operation gets
tensors of two devices; `Watch` does so where one gets two types, or waits for the GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from isanet_zoo.engines import cuda, cuda_graphs
from isanet_zoo.engines.fast_path import FastPath
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.inference import decide
from isanet_zoo.inference.predictor import Predictor
from isanet_zoo.network.isanet import ISANet
from tests.engines.networks import HEAD

CUDA = torch.device("cuda", 0)
IMAGES = [np.zeros((40, 64, 3), np.uint8)] * 2  # the first one runs eagerly, then as a graph
SAME_TYPES = ("convolution", "addmm", "bmm", "scaled_dot_product")


class Copied:
    """A fake tensor's copy on the host, where it is zeros."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype

    def __getitem__(self, index: int) -> Copied:
        return Copied(self.shape[1:], self.dtype)

    def numpy(self) -> NDArray[Any]:
        return np.zeros(self.shape, str(self.dtype).removeprefix("torch."))


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations on mixed types, and those that wait for the GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.types: set[torch.dtype] = set()  # of the convolutions on the GPU

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(function)
        assert "_local_scalar_dense" not in name, "a value is read from the GPU"
        result = function(*args, **kwargs)
        tensors = [part for part in args if isinstance(part, Tensor) and part.dim()]
        if any(part in name for part in SAME_TYPES):
            (dtype,) = {part.dtype for part in tensors}
            self.types.add(dtype)
        moved = isinstance(result, Tensor) and {part.device for part in tensors} - {result.device}
        assert not moved or kwargs.get("non_blocking"), f"{name} copies and waits"
        return result


def replace_parameters(module: nn.Module, function: Callable[[Tensor], Tensor]) -> nn.Module:
    """Do what `nn.Module._apply` does, which exchanges tensors in place where they are fake."""
    for child in module.children():
        replace_parameters(child, function)
    for name, parameter in module.named_parameters(recurse=False):
        setattr(module, name, nn.Parameter(function(parameter), requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, function(buffer))
    return module


@pytest.fixture
def predict_on_fake_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., list[Segmentation]]:
    """Return a function that predicts `IMAGES` with options, on fake CUDA tensors."""
    events: list[torch.device] = []

    def to_host(tensor: Tensor) -> Copied:
        assert tensor.device == CUDA
        return Copied(tuple(tensor.shape), tensor.dtype)

    def record_event(device: torch.device) -> Any:
        assert device == CUDA
        return SimpleNamespace(synchronize=lambda: events.append(device))

    for name, replacement in {
        "to_device": lambda tensor, device: tensor.to(device, non_blocking=True),  # not pinned
        "to_host": to_host,
        "record_event": record_event,
        "current": lambda device: contextlib.nullcontext(),
        "graph_pool": lambda: None,
        "Graph": lambda function, images, pool: function,
    }.items():
        monkeypatch.setattr(cuda, name, replacement)
    monkeypatch.setattr(cuda_graphs, "_compare", lambda found, expected: "")  # no values
    monkeypatch.setattr(decide, "_fused", FastPath("kernel", lambda found, expected: ""))
    monkeypatch.setattr(decide, "find_candidates", lambda logits: range(logits.shape[1]))
    monkeypatch.setattr(decide, "_gpu_kernel", lambda logits: SimpleNamespace(decide=fused))
    monkeypatch.setattr(nn.Module, "_apply", replace_parameters)
    network = ISANet("test_resnet", num_classes=4, head=HEAD).eval()

    def predict(**options: Any) -> list[Segmentation]:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            with FakeCopyMode(mode):
                predictor = Predictor(network, device="cuda", **options)
            assert (predictor.device, predictor.dtype) == (
                CUDA,
                options.get("dtype") or torch.float32,
            )
            with Watch() as watch:
                results = predictor(IMAGES)
        assert not predictor.engine._forward._path._failed  # type: ignore[attr-defined]
        assert not decide._fused._failed
        assert watch.types <= {predictor.dtype, torch.float32}
        assert predictor.dtype in watch.types
        assert events
        assert isinstance(results, list)
        return results

    return predict


def fused(
    logits: Tensor, size: tuple[int, int], rule: str, confidence: bool
) -> tuple[Tensor, Tensor | None]:
    """What the GPU kernel returns."""
    assert (logits.device, logits.dtype) == (CUDA, torch.float32)
    assert logits.is_contiguous()
    made = logits.new_empty(len(logits), *size)
    return made.to(torch.uint8), made if confidence else None


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {"confidence": True, "batch_size": 2}),
        (
            torch.bfloat16,
            {"flip": True, "tile": 32, "overlap": 0.0, "batch_size": 4, "probabilities": True},
        ),
        (torch.float32, {"scales": (0.5, 1.0), "tile": (27, 35), "overlap": 0.0, "batch_size": 4}),
    ],
    ids=str,
)
def test_path_on_cuda_mixes_no_devices_and_types(
    dtype: torch.dtype,
    options: dict[str, Any],
    predict_on_fake_cuda: Callable[..., list[Segmentation]],
) -> None:
    size = IMAGES[0].shape[:2]
    for found in predict_on_fake_cuda(dtype=dtype, **options):
        assert found.labels.shape == size
        assert found.labels.dtype == np.uint8
        for name, shape in (("confidence", size), ("probabilities", (4, *size))):
            part = getattr(found, name)
            assert (part is not None) == bool(options.get(name))
            if part is not None:
                assert part.shape == shape
                assert part.dtype == np.float32
