"""Whole runs: that they learn, what they leave behind, and that they survive being killed."""

from __future__ import annotations

import csv
import itertools
import resource
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from isanet_zoo import CheckpointError, InputError, Recipe, evaluate, open_dataset, train
from isanet_zoo.learning.training import Moment
from isanet_zoo.weights.cards import Card, read_card
from isanet_zoo.weights.tensors import state_digest
from tests.learning import tiny
from tests.learning.tiny import RECIPE

COLUMNS = ["epoch", "step", "loss", "lr", "seconds", "miou", "pixel_accuracy"]
SHORT = replace(RECIPE, epochs=2, batch_size=2)


def read_log(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_card_of(path: Path) -> Card:
    card = read_card(path)
    assert card is not None
    return card


def outcome(out: Path) -> tuple[Any, ...]:
    """Return all that a run leaves behind, save for how long it took."""
    names = ("best.safetensors", "last.safetensors")
    rows = [{**row, "seconds": None} for row in read_log(out)]
    return rows, *((read_card(out / name), digest(out / name)) for name in names)


def digest(path: Path) -> str:
    return state_digest(safetensors.torch.load_file(path))


def test_a_small_network_learns_its_pictures_by_heart(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data")
    recipe = replace(
        RECIPE,
        epochs=40,
        crop=(64, 80),
        scale=(1.0, 1.0),
        flip=0.0,
        max_category_ratio=1.0,
        brightness=0.0,
        contrast=(1.0, 1.0),
        saturation=(1.0, 1.0),
        hue=0.0,
        optimizer="adamw",
        lr=3e-3,
        head_multiplier=1.0,
        min_lr=0.0,
    )
    model = tiny.network(dataset.label_set)
    assert evaluate(model, dataset).miou < 0.5
    train(model, dataset, recipe, tmp_path / "run")
    assert evaluate(model, dataset).miou > 0.9
    losses = [float(row["loss"]) for row in read_log(tmp_path / "run")]
    assert losses[-1] < 0.2 * losses[0]


def test_files_say_what_the_run_was(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 5)
    validation = tiny.dataset(tmp_path / "data", "val", sizes=[(48, 64), (40, 72)])
    recipe = replace(SHORT, epochs=3, ema=0.5)
    model = tiny.network(dataset.label_set)
    moments: list[Moment] = []
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
    assert sorted(path.name for path in out.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "log.csv",
        "state.pt",
    ]
    rows = read_log(out)
    assert list(rows[0]) == COLUMNS
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "2"), ("2", "4"), ("3", "6")]
    assert [row["miou"] == "" for row in rows] == [True, False, False]
    assert [row["pixel_accuracy"] == "" for row in rows] == [True, False, False]
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


def test_best_is_the_epoch_with_the_best_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 2)
    validation = tiny.dataset(tmp_path / "data", "val", sizes=[(48, 64)])
    real = evaluate(tiny.network(dataset.label_set), validation)
    scores = iter(replace(real, miou=miou) for miou in (0.25, 0.5, 0.5, 0.125))
    monkeypatch.setattr("isanet_zoo.learning.training.evaluate", lambda *_: next(scores))
    model, recipe = tiny.network(dataset.label_set), replace(SHORT, epochs=4)
    states: list[dict[str, Any]] = []

    def remember(_: Moment) -> None:
        states.append({key: tensor.clone() for key, tensor in model.state_dict().items()})

    best = train(model, dataset, recipe, tmp_path / "run", validation=validation, progress=remember)
    tiny.assert_same(safetensors.torch.load_file(best), states[1])
    tiny.assert_same(safetensors.torch.load_file(best.with_name("last.safetensors")), states[3])
    assert read_card_of(best).metrics[0].value == 50


def test_without_validation_the_last_is_the_best(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 2)
    model = tiny.network(dataset.label_set)
    best = train(model, dataset, SHORT, tmp_path / "run")
    tiny.assert_same(safetensors.torch.load_file(best), model.state_dict())
    assert digest(best) == digest(best.with_name("last.safetensors"))
    assert read_card_of(best).metrics == ()
    assert [(row["miou"], row["pixel_accuracy"]) for row in read_log(tmp_path / "run")] == [
        ("", ""),
        ("", ""),
    ]


def test_class_weights_come_from_the_masks(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 2)
    outcomes = []
    for number, offset in enumerate((None, 1.02, 1.5)):
        model = tiny.network(dataset.label_set)
        recipe = replace(SHORT, epochs=1, class_weights=offset)
        train(model, dataset, recipe, tmp_path / str(number))
        outcomes.append(read_log(tmp_path / str(number))[0]["loss"])
    assert len(set(outcomes)) == 3


def test_pictures_may_be_read_by_another_process(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 4)
    outcomes = []
    for workers in (0, 1):
        model, out = tiny.network(dataset.label_set, dropout=0.1), tmp_path / str(workers)
        train(model, dataset, SHORT, out, workers=workers)
        outcomes.append(outcome(out))
    assert outcomes[0] == outcomes[1]


# Runs that are killed


def train_until(rank: int, data: Path, out: Path, recipe: Recipe, kind: str, limit: int) -> None:
    """Train in a process of its own, and be killed as `deadly` says; resume what there is."""
    torch.set_num_threads(1)
    dataset = open_dataset("folder", data, "train")
    validation = open_dataset("folder", data, "val")
    model = tiny.network(dataset.label_set, dropout=0.1, seed=int((out / "state.pt").exists()))
    steps = itertools.count(1)
    calls = itertools.count(1)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        # All that Python does to files passes here; see its documentation of audit events.
        if event in ("open", "os.rename", "os.remove") and str(out) in str(arguments[0]):
            die(kind == "call" and next(calls) == limit)

    def progress(_: Moment) -> None:
        die(kind == "step" and next(steps) == limit)

    if kind == "size":  # the kernel kills it while it writes a file larger than that
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.addaudithook(watch)
    train(
        model,
        dataset,
        recipe,
        out,
        validation=validation,
        resume=(out / "state.pt").exists(),
        progress=progress,
    )


def die(now: bool) -> None:
    if now:
        signal.raise_signal(signal.SIGKILL)


def kill_after(seconds: float, *arguments: Any) -> None:
    """Start `train_until` and kill it from outside."""
    (process,) = tiny.start(train_until, *arguments, "never", 0, processes=1).processes
    process.join(seconds)
    process.kill()
    process.join()


def assert_files_are_whole(out: Path) -> None:
    for path in out.glob("*.safetensors"):
        read_card_of(path)
        digest(path)
    if (out / "state.pt").exists():
        torch.load(out / "state.pt", weights_only=True)
    if (out / "log.csv").exists():
        assert all(None not in row.values() for row in read_log(out))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Recipe]:
    """The data, the folder of a run that nobody stopped, and its recipe."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny.dataset(folder / "data", sizes=[(48, 64)] * 5)
    tiny.dataset(folder / "data", "val", sizes=[(48, 64), (32, 40)])
    recipe = replace(SHORT, epochs=4, ema=0.8, class_weights=1.1)
    tiny.run(train_until, folder / "data", folder / "run", recipe, "never", 0)
    return folder / "data", folder / "run", recipe


KILLS = {
    "while a file is written": [("size", 900_000), ("size", 2_500_000), ("call", 30)],
    "between files": [("call", number) for number in (3, 4, 7, 8, 11, 12, 15, 16, 17, 18)],
    "between steps": [("step", 1), ("step", 2), ("step", 3), ("step", 3)],
}


@pytest.mark.parametrize("kills", KILLS.values(), ids=KILLS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    undisturbed: tuple[Path, Path, Recipe], tmp_path: Path, kills: list[tuple[str, int]]
) -> None:
    data, expected, recipe = undisturbed
    for kind, limit in kills:
        with pytest.raises(ProcessExitedException, match=r"SIGKILL|SIGXFSZ"):
            tiny.run(train_until, data, tmp_path / "run", recipe, kind, limit)
        assert_files_are_whole(tmp_path / "run")
    tiny.run(train_until, data, tmp_path / "run", recipe, "never", 0)
    assert outcome(tmp_path / "run") == outcome(expected)


def test_a_run_may_be_killed_at_any_time(
    undisturbed: tuple[Path, Path, Recipe], tmp_path: Path
) -> None:
    data, expected, recipe = undisturbed
    for seconds in (0.05, 0.3, 0.5, 0.7, 1.0):
        kill_after(seconds, data, tmp_path / "run", recipe)
        assert_files_are_whole(tmp_path / "run")
    tiny.run(train_until, data, tmp_path / "run", recipe, "never", 0)
    assert outcome(tmp_path / "run") == outcome(expected)


# What may be resumed


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def test_a_finished_run_is_not_trained_again(
    undisturbed: tuple[Path, Path, Recipe], tmp_path: Path
) -> None:
    data, run, recipe = undisturbed
    dataset = open_dataset("folder", data, "train")
    out = copied(run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    moments: list[Moment] = []
    model = tiny.network(dataset.label_set, dropout=0.1)
    best = train(model, dataset, recipe, out, resume=True, progress=moments.append)
    assert best == out / "best.safetensors"
    assert not moments
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_run_is_not_overwritten(undisturbed: tuple[Path, Path, Recipe]) -> None:
    data, run, recipe = undisturbed
    dataset = open_dataset("folder", data, "train")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(InputError, match="holds a run already; resume it, or name another"):
        train(tiny.network(dataset.label_set), dataset, recipe, run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_another_run_is_not_resumed(undisturbed: tuple[Path, Path, Recipe]) -> None:
    data, run, recipe = undisturbed
    dataset = open_dataset("folder", data, "train")
    other = replace(recipe, lr=0.01, crop=(32, 32))
    with pytest.raises(InputError, match="another run") as caught:
        train(tiny.network(dataset.label_set), dataset, other, run, resume=True, seed=7)
    for change in ("crop was (48, 64), is (32, 32)", "lr was 0.02, is 0.01", "seed was 0, is 7"):
        assert change in str(caught.value)
    assert "epochs" not in str(caught.value)
    validation = open_dataset("folder", data, "val")
    with pytest.raises(InputError, match="pictures was 5, is 2"):
        train(tiny.network(dataset.label_set), validation, recipe, run, resume=True)


def test_there_has_to_be_a_run_to_resume(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 2)
    with pytest.raises(InputError, match=r"holds no run to resume: .*state\.pt is missing"):
        train(tiny.network(dataset.label_set), dataset, SHORT, tmp_path / "run", resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be a folder"):
        train(tiny.network(dataset.label_set), dataset, SHORT, tmp_path / "file" / "run")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other", "flipped"])
def test_a_damaged_state_is_told(
    undisturbed: tuple[Path, Path, Recipe], tmp_path: Path, damage: str
) -> None:
    data, run, recipe = undisturbed
    dataset = open_dataset("folder", data, "train")
    out = copied(run, tmp_path / "run")
    content = (out / "state.pt").read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:-1000],
        "empty": b"",
        "text": b"hello",
        "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }
    if damage == "other":
        torch.save({"terms": {}}, out / "state.pt")
    else:
        (out / "state.pt").write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        train(tiny.network(dataset.label_set), dataset, recipe, out, resume=True)


def test_classes_have_to_be_the_data_set_s(tmp_path: Path) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 2)
    with pytest.raises(InputError, match=r"class 0, class 1, class 2, those of data train ground"):
        train(tiny.network(), dataset, SHORT, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"recipe": replace(SHORT, batch_size=3)}, "batch_size is 3, but there are 2 pictures"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    dataset = tiny.dataset(tmp_path / "data", sizes=[(48, 64)] * 2)
    options: dict[str, Any] = {"recipe": SHORT, "out": tmp_path / "run"} | change
    with pytest.raises(InputError, match=message):
        train(tiny.network(dataset.label_set), dataset, **options)
    assert not (tmp_path / "run").exists()
