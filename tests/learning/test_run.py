"""Tests of `train`: learning, files, the best epoch, divergence, errors, and options."""

from __future__ import annotations

import csv
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from isanet_zoo import InputError, Recipe, SegmentationDataset, evaluate, train
from isanet_zoo.learning import batches
from isanet_zoo.learning.run import RunProgress
from isanet_zoo.learning.run_folder import REPORT
from isanet_zoo.weights.description import Description, read_description
from isanet_zoo.weights.tensors import state_digest
from tests.learning import tiny
from tests.learning.tiny import RECIPE

COLUMNS = ["epoch", "step", "loss", "lr", "seconds", "miou", "pixel_accuracy", "classes"]
COLUMNS += [f"iou {name}" for name in tiny.CLASSES]
SHORT = replace(RECIPE, epochs=2, batch_size=2)


def read_log(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_card_of(path: Path) -> Description:
    card = read_description(path)
    assert card is not None
    return card


def outcome(out: Path) -> tuple[Any, ...]:
    """Return everything that a run leaves behind but its duration."""
    names = ("best.safetensors", "last.safetensors")
    rows = [{**row, "seconds": None} for row in read_log(out)]
    report = [line for line in (out / "report.md").read_text().split("\n") if "| time" not in line]
    drawings = [(out / name).read_bytes() for name in REPORT[1:] if name != "report.md"]
    return (
        rows,
        report,
        drawings,
        *((read_description(out / name), digest(out / name)) for name in names),
    )


def contents(out: Path) -> dict[str, bytes]:
    """Return the files of a folder, without those whose names start with a dot."""
    return {path.name: path.read_bytes() for path in out.glob("[!.]*")}


def digest(path: Path) -> str:
    return state_digest(safetensors.torch.load_file(path))


def replace_miou(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Replace the mIoU of the evaluations of `train`."""
    pending = iter(values)

    def evaluate_now(*arguments: Any, **options: Any) -> Any:
        return replace(evaluate(*arguments, **options), miou=next(pending))

    monkeypatch.setattr("isanet_zoo.learning.run.evaluate", evaluate_now)


@pytest.fixture
def small(tmp_path: Path) -> SegmentationDataset:
    """Four images."""
    return tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 4)


# Learning and files


def test_small_network_overfits_its_images(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 2)
    # With many steps in an epoch, few epochs are saved.
    repeated = SegmentationDataset(dataset.pairs * 24, dataset.label_set, name=dataset.name)
    recipe = replace(
        RECIPE,
        epochs=4,
        batch_size=2,
        scale=(1.0, 1.0),
        flip=0.0,
        max_category_ratio=1.0,
        brightness=0.0,
        contrast=(1.0, 1.0),
        saturation=(1.0, 1.0),
        hue=0.0,
        optimizer="adamw",
        lr=6e-3,
        head_multiplier=1.0,
        min_lr=0.0,
    )
    model = tiny.network(dataset.label_set)
    assert evaluate(model, dataset).miou < 0.5
    train(model, repeated, recipe, tmp_path / "run")
    assert evaluate(model, dataset).miou > 0.9
    losses = [float(row["loss"]) for row in read_log(tmp_path / "run")]
    assert losses[-1] < 0.2 * losses[0]


def test_files_and_progress_describe_the_run(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 5)
    validation = tiny.dataset(tmp_path / "data", "val", sizes=[(48, 64), (40, 72)])
    recipe = replace(SHORT, epochs=3, ema=0.5)
    model = tiny.network(dataset.label_set)
    moments: list[RunProgress] = []
    best = train(
        model,
        dataset,
        recipe,
        out := tmp_path / "a" / "run",
        validation=validation,
        evaluate_every=2,
        progress=moments.append,
    )
    assert best == out / "best.safetensors"
    weights = ("best.safetensors", "check.png", "last.safetensors", "state.pt")
    assert sorted(contents(out)) == sorted((*weights, *REPORT))
    rows = read_log(out)
    assert list(rows[0]) == COLUMNS
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "2"), ("2", "4"), ("3", "6")]
    assert [row["miou"] == "" for row in rows] == [True, False, False]
    assert [row["pixel_accuracy"] == "" for row in rows] == [True, False, False]
    assert [row["classes"] for row in rows] == ["", "3", "3"]
    assert [float(row["lr"]) for row in rows] == pytest.approx(
        [(0.02 - 0.001) * (1 - step / 6) ** 0.9 + 0.001 for step in (2, 4, 6)]
    )
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)

    scores = {epoch: float(rows[epoch - 1]["miou"]) for epoch in (2, 3)}
    cards = read_card_of(best), read_card_of(out / "last.safetensors")
    for card, miou in zip(cards, (max(scores.values()), scores[3]), strict=True):
        assert card.model == ""
        assert card.network == model.config
        assert card.label_set == dataset.label_set
        assert card.label_set.names == tiny.CLASSES
        assert card.label_set.palette == model.label_set.palette
        assert card.preprocess == model.preprocess
        assert card.dataset == dataset.name == "data train"
        assert card.recipe == recipe
        (metric,) = card.metrics
        assert (metric.name, metric.split) == ("mIoU", "data val")
        assert metric.value == pytest.approx(100 * miou)
        assert metric.reproduced == metric.value
    saved = tiny.network(dataset.label_set, seed=1)
    saved.load_state_dict(safetensors.torch.load_file(best))
    assert evaluate(saved, validation).miou == max(scores.values())

    assert [(moment.step, moment.steps) for moment in moments] == [
        (step, 6) for step in range(1, 7)
    ]
    assert [moment.last.epoch if moment.last else 0 for moment in moments] == [0, 1, 1, 2, 2, 3]
    assert moments[-1].remaining == 0
    for epoch in (1, 2, 3):
        losses = [moment.loss for moment in moments[2 * epoch - 2 : 2 * epoch]]
        assert float(rows[epoch - 1]["loss"]) == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_best_is_the_epoch_with_the_highest_miou(
    tmp_path: Path, small: SegmentationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_miou(monkeypatch, 0.25, 0.5, 0.5, 0.125)
    model, recipe = tiny.network(small.label_set), replace(SHORT, batch_size=4, epochs=4)
    states: list[dict[str, Any]] = []

    def remember(_: RunProgress) -> None:
        states.append({key: tensor.clone() for key, tensor in model.state_dict().items()})

    best = train(model, small, recipe, tmp_path / "run", validation=small, progress=remember)
    tiny.assert_same(safetensors.torch.load_file(best), states[1])
    tiny.assert_same(safetensors.torch.load_file(best.with_name("last.safetensors")), states[3])
    assert read_card_of(best).metrics[0].value == 50


def test_last_epoch_is_the_best_without_validation(
    tmp_path: Path, small: SegmentationDataset
) -> None:
    model = tiny.network(small.label_set)
    best = train(model, small, SHORT, tmp_path / "run")
    tiny.assert_same(safetensors.torch.load_file(best), model.state_dict())
    assert digest(best) == digest(best.with_name("last.safetensors"))
    assert read_card_of(best).metrics == ()
    assert [(row["miou"], row["pixel_accuracy"]) for row in read_log(tmp_path / "run")] == [
        ("", ""),
        ("", ""),
    ]


def test_class_weights_follow_the_masks(tmp_path: Path, small: SegmentationDataset) -> None:
    losses = []
    for number, (offset, check) in enumerate([(None, True), (1.02, True), (1.5, False)]):
        recipe = replace(SHORT, epochs=1, class_weights=offset)
        out = tmp_path / str(number)
        train(tiny.network(small.label_set), small, recipe, out, check=check)
        losses.append(read_log(out)[0]["loss"])
    assert len(set(losses)) == 3


def test_layers_for_cpus_are_restored_after_a_run(
    tmp_path: Path, small: SegmentationDataset
) -> None:
    model = tiny.network(small.label_set, backbone="test_efficientnet")
    kinds = [type(module) for module in model.modules()]
    train(model, small, replace(SHORT, epochs=1), tmp_path / "run")
    assert [type(module) for module in model.modules()] == kinds
    (tmp_path / "data" / "images" / "train" / "0.png").unlink()
    with pytest.raises(InputError):
        train(model, small, SHORT, tmp_path / "other", check=False)
    assert [type(module) for module in model.modules()] == kinds


# Reading processes


def test_reading_processes_do_not_change_the_result(
    tmp_path: Path, small: SegmentationDataset
) -> None:
    outcomes = []
    for workers in (0, 1):
        model, out = tiny.network(small.label_set, dropout=0.1), tmp_path / str(workers)
        train(model, small, SHORT, out, validation=small, workers=workers)
        outcomes.append(outcome(out))
    assert outcomes[0] == outcomes[1]


def test_error_in_a_reading_process_is_that_of_the_main_process(
    tmp_path: Path, small: SegmentationDataset
) -> None:
    (tmp_path / "data" / "images" / "train" / "2.png").write_bytes(b"not an image")
    messages = []
    for workers in (0, 1):
        with pytest.raises(InputError) as caught:
            train(
                tiny.network(small.label_set),
                small,
                SHORT,
                tmp_path / str(workers),
                workers=workers,
                check=False,
            )
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "images/train/2.png" in messages[0]
    assert "\n" not in messages[0]


def test_killed_reading_process_is_one_error(
    tmp_path: Path, small: SegmentationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(batches.Augmented, "__getitem__", die)
    model, out = tiny.network(small.label_set), tmp_path / "run"
    with pytest.raises(InputError, match=r"was killed, probably for lack of memory.* 0 to read"):
        train(model, small, SHORT, out, workers=1, check=False)  # check.png reads in this process


# Divergence


def diverge_at(monkeypatch: pytest.MonkeyPatch, step: int, spoil: Any) -> None:
    """Call `spoil(trainer)` after a step; a tensor that it returns is the loss."""
    real = train.__globals__["Trainer"].train_step

    def train_step(self: Any, *batch: Any) -> Any:
        loss = real(self, *batch)
        spoiled = spoil(self) if self.step == step else None
        return loss if spoiled is None else spoiled

    monkeypatch.setattr("isanet_zoo.learning.run.Trainer.train_step", train_step)


def spoil_loss(_: Any) -> Any:
    return torch.tensor(float("nan"))


def spoil_weight(trainer: Any) -> None:
    trainer.model.head.classifier.weight.data[0, 0] = float("inf")


def spoil_average(trainer: Any) -> None:
    trainer.result.head.classifier.bias.data[0] = float("nan")


def spoil_momentum(trainer: Any) -> None:
    parameter = trainer.model.head.classifier.bias
    trainer.optimizer.state[parameter]["momentum_buffer"][0] = float("nan")


def spoil_scale(trainer: Any) -> None:
    """Make all tensors finite, but the logits infinite."""
    for network in (trainer.model, trainer.result):
        network.head.classifier.weight.data.fill_(3e38)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (spoil_loss, "the loss is nan"),
        (spoil_weight, r"model\.head\.classifier\.weight is not finite"),
        (spoil_average, r"average\.module\.head\.classifier\.bias is not finite"),
        (spoil_momentum, r"optimizer\.head\.classifier\.bias\.momentum_buffer is not finite"),
        (spoil_scale, "the logits of a training image is not finite"),
    ],
)
def test_divergence_ends_the_run_and_keeps_the_last_good_files(
    tmp_path: Path,
    small: SegmentationDataset,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Any,
    what: str,
) -> None:
    recipe, out = replace(SHORT, epochs=3, ema=0.5), tmp_path / "run"
    kept: list[dict[str, bytes]] = []

    def remember(moment: RunProgress) -> None:
        if moment.step == 2:
            kept.append(contents(out))

    diverge_at(monkeypatch, 4, spoil)
    with pytest.raises(
        InputError, match=rf"{what} after step 4 of 6 \(learning rate 0\.0\d+\); .*run still c"
    ) as caught:
        train(tiny.network(small.label_set), small, recipe, out, progress=remember)
    assert "state and weights of epoch 1; use a lower lr" in str(caught.value)
    assert contents(out) == kept[0]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_absurd_learning_rate_saves_nothing(
    tmp_path: Path, small: SegmentationDataset, steps: int
) -> None:
    recipe = replace(SHORT, epochs=1, batch_size=4 // steps, lr=1e6, head_multiplier=1e6)
    with pytest.raises(InputError, match=r"training diverged: .*nothing was saved"):
        train(tiny.network(small.label_set), small, recipe, tmp_path / "run", validation=small)
    assert list(contents(tmp_path / "run")) == ["check.png"]


# Checks before a run


def test_bad_masks_of_both_data_sets_are_listed_before_the_first_step(
    tmp_path: Path, small: SegmentationDataset
) -> None:
    validation = tiny.dataset(tmp_path / "data", "val", sizes=[(48, 64)])
    for mask in (small.pairs[3][1], validation.pairs[0][1]):
        Image.fromarray(np.full((48, 64), 9, np.uint8)).save(mask)
    moments: list[tuple[int, int | None]] = []

    def train_now(**options: Any) -> None:
        model = tiny.network(small.label_set)
        train(model, small, SHORT, tmp_path / "run", validation=validation, **options)

    with pytest.raises(InputError, match=r"2 of 5 pairs(.|\n)*train/3\.png(.|\n)*val/0\.png"):
        train_now(
            progress=lambda _: pytest.fail("a step was made"),
            check_progress=lambda *moment: moments.append(moment),
        )
    assert moments[-1] == (5, 5)
    with pytest.raises(InputError, match=r"^\S*train/3\.png contains 9"):
        train_now(check=False)


def test_state_is_saved_before_a_failing_validation(
    tmp_path: Path, small: SegmentationDataset
) -> None:
    validation = tiny.dataset(tmp_path / "data", "val", sizes=[(48, 64)] * 2)
    mask = validation.pairs[1][1]
    good = mask.read_bytes()
    mask.write_bytes(b"")

    def train_now(out: Path, **options: Any) -> None:
        model = tiny.network(small.label_set)
        train(model, small, SHORT, out, validation=validation, **options)

    with pytest.raises(InputError, match=r"val/1\.png"):
        train_now(tmp_path / "run", check=False)
    assert list(contents(tmp_path / "run")) == ["state.pt"]
    mask.write_bytes(good)
    steps: list[int] = []
    train_now(tmp_path / "run", resume=True, progress=lambda moment: steps.append(moment.step))
    assert steps == [3, 4]
    train_now(tmp_path / "expected")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "expected")


def test_other_classes_are_refused(tmp_path: Path, small: SegmentationDataset) -> None:
    with pytest.raises(InputError, match=r"class 0, class 1, class 2, data train has ground, box"):
        train(tiny.network(), small, SHORT, tmp_path / "run")
    other = SegmentationDataset(small.pairs, tiny.network().label_set, name="other")
    with pytest.raises(InputError, match=r"the classes ground, box, bar, other has class 0, cl"):
        train(tiny.network(small.label_set), small, SHORT, tmp_path / "run", validation=other)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"accumulate": True}, "accumulate is True"),
        ({"workers": -1}, "workers is -1"),
        ({"workers": 10**9}, "workers is 1000000000"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, f"seed is {2**64}"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"device": "gpu"}, "device 'gpu' is not available"),
        ({"device": "meta"}, "device 'meta' is not available"),
        ({"device": 77}, "device '77' is not available"),
        ({"recipe": replace(SHORT, batch_size=5)}, "batch_size is 5, but there are 4 images"),
        ({"recipe": replace(SHORT, frozen=("stem",))}, "stem"),
        ({"recipe": replace(SHORT, patience=5)}, "patience is 5, but there is no validation"),
        (
            {"recipe": replace(SHORT, batch_size=1, crop=(8, 8))},
            r"batch_size 1, crop \[8, 8\] and accumulate 1 leave one value per channel",
        ),
        (
            {"recipe": replace(SHORT, batch_size=3, crop=(8, 3)), "accumulate": 2},
            r"batch_size 3, crop \[8, 3\] and accumulate 2 leave one value",
        ),
    ],
)
def test_option_out_of_range_is_refused_before_anything_is_written(
    tmp_path: Path, small: SegmentationDataset, change: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"recipe": SHORT, "out": tmp_path / "run"} | change
    with pytest.raises(InputError, match=message):
        train(tiny.network(small.label_set), small, **options)
    assert not (tmp_path / "run").exists()


def test_single_value_per_channel_is_allowed_with_frozen_norms(
    tmp_path: Path, small: SegmentationDataset
) -> None:
    recipe: Recipe = replace(SHORT, epochs=1, batch_size=1, crop=(8, 8), aux_weight=0.0)
    model = tiny.network(small.label_set).freeze_norm()
    train(model, small, recipe, tmp_path / "run")
