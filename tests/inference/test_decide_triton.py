"""The GPU kernel in Triton's interpreter, against resizing all classes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isanet_zoo.inference.decide import ResizedLogits, decide
from isanet_zoo.network.resize import resize
from tests import reference
from tests.gpu import needs_gpu

pytest.importorskip("triton", reason="Triton has no build for this system")

SCRIPT = """
import torch

from isanet_zoo.inference import decide_triton
from isanet_zoo.network.resize import resize

generator = torch.Generator().manual_seed(0)
rules = ("half_pixel", "corners", "asymmetric")
for shape, size, compared in (
    ((2, 7, 5, 6), (37, 43), rules),  # more pixels than one program takes
    ((1, 40, 8, 9), (30, 34), rules[1:2]),
    ((1, 3, 1, 4), (5, 1), rules),
    ((1, 256, 3, 3), (11, 12), rules[:1]),
    ((1, 5, 9, 11), (4, 6), rules),  # smaller than the logits
):
    for rule in compared:
        logits = 4 * torch.randn(shape, generator=generator)
        labels, confidence = decide_triton.decide(logits, size, rule, True)
        scores = resize(logits, size, rule)
        best, second = scores.topk(2, 1).values.unbind(1)
        clear = best - second > 1e-4
        assert labels.dtype == torch.uint8
        assert clear.double().mean() > 0.99
        assert torch.equal(labels[clear].long(), scores.argmax(1)[clear])
        torch.testing.assert_close(confidence, scores.softmax(1).amax(1), rtol=1e-5, atol=1e-5)
        alone, nothing = decide_triton.decide(logits, size, rule)
        assert nothing is None
        assert torch.equal(alone, labels)
ties = torch.zeros(1, 4, 3, 3)
for rule in rules:
    assert not decide_triton.decide(ties, (9, 9), rule)[0].any()  # the first of equal ones

bad = torch.stack([torch.full((3, 3), value) for value in (1.0, 2.0, float("nan"), 3.0)])[None]
for logits, label in ((bad, 1), (bad[:, 2:], 0)):  # nothing is higher than NaN, as on a CPU
    labels, confidence = decide_triton.decide(logits, (5, 5), "half_pixel", True)
    assert (labels == label).all() and confidence.isnan().all()
"""


def test_labels_and_confidence_equal_those_of_eager_resizing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(reference.__file__).parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@needs_gpu
@pytest.mark.parametrize("rule", ["half_pixel", "corners"])
def test_labels_on_a_gpu_equal_those_of_eager_resizing(rule: str) -> None:
    logits = 4 * torch.randn(2, 150, 64, 86, device="cuda")
    scores = ResizedLogits(logits, (512, 683), rule)  # type: ignore[arg-type]
    expected = resize(logits, (512, 683), rule)  # type: ignore[arg-type]
    assert torch.equal(decide([scores]).labels.long(), expected.argmax(1))
    confidence = decide([scores], confidence=True).confidence
    assert confidence is not None
    torch.testing.assert_close(confidence, expected.softmax(1).amax(1), rtol=1e-5, atol=1e-5)
