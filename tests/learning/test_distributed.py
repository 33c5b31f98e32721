"""Two processes do together what one does alone."""

from __future__ import annotations

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
    """Tell the test what this process found, and leave the group."""
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


def test_shared_evaluation_gives_the_scores_of_one_process(tmp_path: Path) -> None:
    sizes = [(48, 64), (41, 57), (64, 40), (48, 64), (33, 70)]
    tiny.dataset(tmp_path / "data", "many", sizes=sizes)
    tiny.dataset(tmp_path / "data", "one", sizes=sizes[:1])  # one process has nothing to do
    tiny.run(evaluate_together, tmp_path, processes=2)
    first, second = shared(tmp_path)
    for number, split in enumerate(("many", "one")):
        scores, rows, _ = scores_of(tmp_path / "data", split)
        for theirs in (first, second):
            # As text: NaN, for a class that a picture does not show, equals nothing.
            assert repr(theirs[number][:2]) == repr([scores, rows])
    assert first[0][2] == [(1, 3), (2, 3), (3, 3)]
    assert second[0][2] == [(1, 2), (2, 2)]
    assert (first[1][2], second[1][2]) == ([(1, 1)], [])


def learn(rank: int, processes: int, backbone: str, options: dict[str, Any]) -> dict[str, Any]:
    """Make two steps with this process's part of the batches."""
    model = tiny.network(backbone=backbone)
    recipe = replace(RECIPE, ema=0.5, frozen=("backbone.conv1",) if "conv1" in options else ())
    options = {key: value for key, value in options.items() if key != "conv1"}
    trainer = Trainer(model, recipe, steps=9, **options)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    losses = []
    for step in range(2):
        # Other shares are ignored in the first half of a batch than in the second.
        images, target = (part.chunk(processes)[rank] for part in tiny.batch(step))
        losses.append(trainer.train_step(images, target))
    return {
        "losses": torch.stack(losses),
        "before": before,
        "state": model.state_dict(),
        "average": trainer.result.state_dict(),
        "logits": trainer.result.eval()(tiny.batch()[0]).detach(),
    }


def learn_together(rank: int, folder: Path, backbone: str, options: dict[str, Any]) -> None:
    tiny.join_group(rank, str(folder))
    share(rank, folder, learn(rank, 2, backbone, options))


def assert_learnt_alike(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compare two outcomes of `learn`, what has changed in units of how much it has changed."""
    torch.testing.assert_close(ours["losses"], theirs["losses"], rtol=1e-4, atol=0)
    torch.testing.assert_close(ours["logits"], theirs["logits"], rtol=1e-2, atol=1e-2)
    for part in ("state", "average"):
        assert ours[part].keys() == theirs[part].keys()
        for key, before in theirs["before"].items():
            left, right = (outcome[part][key].double() - before for outcome in (ours, theirs))
            assert (left - right).norm() <= 5e-3 * right.norm() + 1e-7, (part, key)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"class_weights": torch.tensor([0.2, 1.0, 1.8]), "conv1": True}),
        ("test_efficientnet", {}),  # with timm's BatchNormAct2d
    ],
    ids=["BatchNorm2d", "weighted and frozen", "BatchNormAct2d"],
)
def test_a_shared_step_is_that_of_one_process(
    tmp_path: Path, backbone: str, options: dict[str, Any]
) -> None:
    tiny.run(learn_together, tmp_path, backbone, options, processes=2)
    first, second = shared(tmp_path)
    tiny.assert_same(first["state"], second["state"])
    tiny.assert_same(first["average"], second["average"])
    assert_learnt_alike(first, learn(0, 1, backbone, options))


def accumulate_together(rank: int, folder: Path) -> None:
    tiny.join_group(rank, str(folder))
    share(rank, folder, accumulated(rank, 2, 2))


def accumulated(rank: int, processes: int, parts: int) -> dict[str, Any]:
    """Return the gradients after a batch in parts, with norms frozen (they see a part only)."""
    model = tiny.network().freeze_norm()
    trainer = Trainer(model, RECIPE, steps=9, accumulate=parts)
    images, target = (part.chunk(processes)[rank] for part in tiny.batch())
    trainer.train_step(images, target)
    named = model.named_parameters()
    return {name: value.grad for name, value in named if value.grad is not None}


def test_shared_parts_of_a_batch_add_up_to_it(tmp_path: Path) -> None:
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
    model = tiny.network(dataset.label_set)
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


def test_a_shared_run_is_close_to_that_of_one_process(tmp_path: Path) -> None:
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
    # It goes on with as many processes as it began with.
    dataset = open_dataset("folder", data, "train")
    model = tiny.network(dataset.label_set)
    with pytest.raises(InputError, match="processes was 2, is 1"):
        train(model, dataset, RUN, tmp_path / "together", resume=True)


def refuse_together(rank: int, folder: Path) -> None:
    tiny.join_group(rank, str(folder))
    dataset = open_dataset("folder", folder / "data", "train")
    with pytest.raises(InputError, match="batch_size 3 cannot be shared by 2 processes"):
        train(tiny.network(dataset.label_set), dataset, replace(RUN, batch_size=3), folder / "run")
    share(rank, folder, [distributed.gather(rank), distributed.summed(torch.tensor(rank + 1.0))])


def test_a_batch_has_to_be_shared_evenly(tmp_path: Path) -> None:
    tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 4)
    tiny.run(refuse_together, tmp_path, processes=2)
    assert shared(tmp_path) == [[[0, 1], torch.tensor(3.0)]] * 2


def test_without_a_group_there_is_one_process() -> None:
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather("alone") == ["alone"]
    with distributed.process_group("cpu"):
        assert distributed.world_size() == 1
