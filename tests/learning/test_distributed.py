"""Tests of training and evaluation on two processes, compared with one process."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from isanet_zoo import InputError, Recipe, Scores, Trainer, evaluate, open_dataset, train
from isanet_zoo.learning import distributed
from tests.learning import tiny
from tests.learning.tiny import RECIPE


def share(rank: int, folder: Path, results: Any) -> None:
    """Save what this process found for the test, and leave the group."""
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def shared(folder: Path) -> list[Any]:
    """Return what each of the two processes found."""
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def scores_of(data: Path, split: str) -> list[Any]:
    dataset = open_dataset("folder", data, split)
    rows: list[tuple[str, Scores]] = []
    moments: list[tuple[int, int | None]] = []
    scores = evaluate(
        tiny.network(dataset.label_set),
        dataset,
        each=lambda path, scores: rows.append((path.name, scores)),
        progress=lambda *moment: moments.append(moment),
    )
    return [scores, rows, moments]


def evaluate_together(rank: int, folder: Path) -> None:
    tiny.join_group(rank, str(folder))
    share(rank, folder, [scores_of(folder / "data", split) for split in ("many", "one")])


def test_evaluation_on_two_processes_has_the_scores_of_one(tmp_path: Path) -> None:
    sizes = [(48, 64), (41, 57), (64, 40), (48, 64), (33, 70)]
    tiny.dataset(tmp_path / "data", "many", sizes=sizes)
    tiny.dataset(tmp_path / "data", "one", sizes=sizes[:1])  # one process is idle
    tiny.run(evaluate_together, tmp_path, processes=2)
    first, second = shared(tmp_path)
    for number, split in enumerate(("many", "one")):
        scores, rows, _ = scores_of(tmp_path / "data", split)
        for theirs in (first, second):
            # As text: the NaN of a class that an image lacks is not equal to itself.
            assert repr(theirs[number][:2]) == repr([scores, rows])
    assert first[0][2] == [(1, 3), (2, 3), (3, 3)]
    assert second[0][2] == [(1, 2), (2, 2)]
    assert (first[1][2], second[1][2]) == ([(1, 1)], [])


def learn(rank: int, processes: int, options: dict[str, Any]) -> dict[str, Any]:
    """Make two steps with this process's part of the batches."""
    model = tiny.network(backbone=options["backbone"])
    if options["frozen"]:
        model.freeze_norm()
    frozen = ("backbone.conv_stem",) if "class_weights" in options else ()
    recipe = replace(RECIPE, ema=0.5, frozen=frozen)
    trainer = Trainer(
        model,
        recipe,
        steps=9,
        class_weights=options.get("class_weights"),
        # Chunks of a batch in one process are the parts of two processes.
        accumulate=1 if options["frozen"] or processes == 2 else 2,
    )
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    losses = []
    for step in range(2):
        # The two halves of a batch have different fractions of ignored pixels.
        images, target = (part.chunk(processes)[rank] for part in tiny.batch(step))
        losses.append(trainer.train_step(images, target))
    return {
        "losses": torch.stack(losses),
        "before": before,
        "state": model.state_dict(),
        "average": trainer.result.state_dict(),
    }


def learn_together(rank: int, folder: Path, options: dict[str, Any]) -> None:
    tiny.join_group(rank, str(folder))
    share(rank, folder, learn(rank, 2, options))


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "test_resnet", "frozen": True},
        {"backbone": "test_resnet", "frozen": False},
        {
            "backbone": "test_efficientnet",  # with timm's BatchNormAct2d
            "frozen": False,
            "class_weights": torch.tensor([0.2, 1.0, 1.8]),
        },
    ],
    ids=["frozen norms", "local statistics", "weighted and frozen stem"],
)
def test_step_of_two_processes_is_that_of_one(tmp_path: Path, options: dict[str, Any]) -> None:
    tiny.run(learn_together, tmp_path, options, processes=2)
    first, second = shared(tmp_path)
    tiny.assert_same(first["state"], second["state"])
    tiny.assert_same(first["average"], second["average"])
    alone = learn(0, 1, options)
    torch.testing.assert_close(first["losses"], alone["losses"], rtol=1e-3, atol=0)
    for part in ("state", "average"):
        assert first[part].keys() == alone[part].keys()
        for key, before in alone["before"].items():
            if not options["frozen"] and ("running" in key or "num_batches" in key):
                continue  # one process has seen both halves of each batch
            ours, theirs = (outcome[part][key].double() - before for outcome in (first, alone))
            assert (ours - theirs).norm() <= 5e-3 * theirs.norm() + 1e-7, (part, key)


def test_running_statistics_are_those_of_process_0(tmp_path: Path) -> None:
    options = {"backbone": "test_resnet", "frozen": False}
    tiny.run(learn_together, tmp_path, options, processes=2)
    (first, _), key = shared(tmp_path), "backbone.bn1.running_mean"
    model = tiny.network()
    trainer = Trainer(model, RECIPE, steps=9)
    trainer.train_step(*(part.chunk(2)[0] for part in tiny.batch(0)))  # the part of process 0
    after_one = model.state_dict()[key]
    assert first["state"]["backbone.bn1.num_batches_tracked"] == 2
    assert (first["state"][key] - after_one).norm() < (first["before"][key] - after_one).norm()


def warn_together(rank: int, folder: Path) -> None:
    tiny.join_group(rank, str(folder))
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("isanet_zoo").addHandler(handler)
    Trainer(tiny.network().freeze_norm(), RECIPE, steps=9)
    Trainer(tiny.network(), RECIPE, steps=9)
    share(rank, folder, records)


def test_local_statistics_on_cpus_are_logged_once(tmp_path: Path) -> None:
    tiny.run(warn_together, tmp_path, processes=2)
    first, second = shared(tmp_path)
    (message,) = first
    assert "batch norms use the images of each process separately" in message
    assert second == []


def accumulate_together(rank: int, folder: Path) -> None:
    tiny.join_group(rank, str(folder))
    share(rank, folder, accumulated(rank, 2, 2))


def accumulated(rank: int, processes: int, chunks: int) -> dict[str, Any]:
    """Return the gradients of a batch in chunks, with frozen norms, which would see one chunk."""
    model = tiny.network().freeze_norm()
    trainer = Trainer(model, RECIPE, steps=9, accumulate=chunks)
    images, target = (part.chunk(processes)[rank] for part in tiny.batch())
    trainer.train_step(images, target)
    named = model.named_parameters()
    return {name: value.grad for name, value in named if value.grad is not None}


def test_chunks_on_two_processes_add_up_to_the_batch(tmp_path: Path) -> None:
    tiny.run(accumulate_together, tmp_path, processes=2)
    first, second = shared(tmp_path)
    tiny.assert_same(first, second)
    torch.testing.assert_close(first, accumulated(0, 1, 1), rtol=1e-3, atol=1e-6)


RUN = replace(RECIPE, epochs=2, lr=0.002, head_multiplier=1.0, class_weights=1.1)


def train_together(rank: int, folder: Path, recipe: Recipe) -> None:
    tiny.join_group(rank, str(folder))
    share(rank, folder, train_on(folder / "data", folder / "together", recipe))


def train_on(data: Path, out: Path, recipe: Recipe) -> Any:
    dataset, validation = (open_dataset("folder", data, split) for split in ("train", "val"))
    model = tiny.network(dataset.label_set).freeze_norm()
    moments: list[tuple[int, float]] = []
    best = train(
        model,
        dataset,
        recipe,
        out,
        validation=validation,
        progress=lambda moment: moments.append((moment.step, moment.loss)),
    )
    return best, moments, model.state_dict()


def test_run_on_two_processes_is_close_to_that_of_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    tiny.dataset(data, sizes=[(48, 64)] * 8)
    tiny.dataset(data, "val", sizes=[(48, 64)] * 3)
    tiny.run(train_together, tmp_path, RUN, processes=2)
    (best, moments, state), second = shared(tmp_path)
    assert second[:2] == (best, moments)
    tiny.assert_same(second[2], state)
    tiny.assert_same(safetensors.torch.load_file(tmp_path / "together/last.safetensors"), state)
    assert len((tmp_path / "together/log.csv").read_text().splitlines()) == 3
    _, alone, expected = train_on(data, tmp_path / "alone", RUN)
    assert [step for step, _ in moments] == [1, 2, 3, 4]
    assert [loss for _, loss in moments] == pytest.approx([loss for _, loss in alone], rel=1e-3)
    before = tiny.network().state_dict()
    for key, tensor in expected.items():
        left, right = (outcome.double() - before[key] for outcome in (state[key], tensor))
        assert (left - right).norm() <= 0.02 * right.norm() + 1e-6, key
    # A run is resumed with the number of processes that it was started with.
    dataset, validation = (open_dataset("folder", data, split) for split in ("train", "val"))
    model = tiny.network(dataset.label_set)
    with pytest.raises(InputError, match="processes was 2, is 1"):
        train(model, dataset, RUN, tmp_path / "together", validation=validation, resume=True)


def fail_together(rank: int, folder: Path) -> None:
    tiny.join_group(rank, str(folder))
    dataset = open_dataset("folder", folder / "data", "train")
    messages = []
    for recipe, out in (
        (replace(RUN, batch_size=3), folder / "run"),
        (RUN, folder / "old"),
        (RUN, folder / "run"),
    ):
        with pytest.raises(InputError) as caught:
            train(tiny.network(dataset.label_set), dataset, recipe, out)
        messages.append(str(caught.value))
    share(
        rank,
        folder,
        [messages, distributed.gather(rank), distributed.add_up(torch.tensor(rank + 1.0))],
    )


def test_error_of_one_process_is_raised_in_all(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 4)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "best.safetensors").touch()
    dataset.pairs[1][1].write_bytes(b"")  # the second process checks this one
    tiny.run(fail_together, tmp_path, processes=2)
    first, second = shared(tmp_path)
    assert first == second
    messages, ranks, total = first
    for message, pattern in zip(
        messages,
        (
            r"batch_size 3 is not divisible by the 2 processes",
            r"already contains a run \(best\.safetensors\)",
            r"masks/train/1\.png",
        ),
        strict=True,
    ):
        assert re.search(pattern, message)
    assert (ranks, total) == ([0, 1], torch.tensor(3.0))


def test_without_a_group_there_is_one_process() -> None:
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather("alone") == ["alone"]
    with distributed.process_group("cpu"):
        assert distributed.world_size() == 1
