"""Tests of the folder of a run: lock, resuming, unusable states, full disks, killed processes."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from isanet_zoo import CheckpointError, InputError, Recipe, open_dataset, train
from isanet_zoo.files import PART_PREFIX
from isanet_zoo.learning.run import RunProgress
from isanet_zoo.weights.tensors import state_digest
from tests.learning import tiny
from tests.learning.test_run import SHORT, contents, digest, outcome, read_card_of, read_log

Run = tuple[Path, Path, Recipe]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The data, the folder of a finished run, and its recipe."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.dataset(folder / "data", sizes=[(48, 64)] * 5)
    tiny.dataset(folder / "data", "val", sizes=[(48, 64), (32, 40)])
    recipe = replace(SHORT, epochs=3, ema=0.8, class_weights=1.1)
    train_in(folder / "data", folder / "run", recipe)
    return folder / "data", folder / "run", recipe


def train_in(data: Path, out: Path, recipe: Recipe, *, resume: bool = False, **options: Any) -> Any:
    """Train a network with dropout; its first weights differ if the run is resumed."""
    dataset, validation = (open_dataset("folder", data, split) for split in ("train", "val"))
    model = tiny.network(dataset.label_set, dropout=0.1, seed=int(resume))
    options = {"validation": validation} | options
    return train(model, dataset, recipe, out, resume=resume, **options)


def resume_killed(data: Path, out: Path, recipe: Recipe, **options: Any) -> None:
    """Resume a run; start one that was killed before its first state again."""
    train_in(data, out, recipe, resume=(out / "state.pt").exists(), **options)


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


# Resuming


def test_finished_run_is_not_trained_again(run: Run, tmp_path: Path) -> None:
    data, finished, recipe = run
    out = copied(finished, tmp_path / "run")
    moments: list[RunProgress] = []
    best = train_in(data, out, recipe, resume=True, progress=moments.append)
    assert best == out / "best.safetensors"
    assert not moments
    assert contents(out) == contents(finished)


def test_more_epochs_extend_a_run(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, finished, recipe = run
    out = copied(finished, tmp_path / "run")
    longer = replace(recipe, epochs=5)
    moments: list[RunProgress] = []
    train_in(data, out, longer, resume=True, progress=moments.append)
    assert "the run is extended from 3 to 5 epochs; its learning rate follows the l" in caplog.text
    rows, before = read_log(out), read_log(finished)
    assert rows[:3] == before
    assert [moment.step for moment in moments] == [7, 8, 9, 10]
    assert [moment.lr for moment in moments] == pytest.approx(
        [(0.02 - 0.001) * (1 - step / 10) ** 0.9 + 0.001 for step in (7, 8, 9, 10)]
    )
    best = max(float(row["miou"]) for row in rows)
    assert read_card_of(out / "best.safetensors").metrics[0].value == pytest.approx(100 * best)
    with pytest.raises(InputError, match="epochs was 5, is 3"):
        train_in(data, out, recipe, resume=True)


def test_run_that_exists_is_not_overwritten(run: Run) -> None:
    data, out, recipe = run
    before = contents(out)
    with pytest.raises(InputError, match=r"already contains a run \(.*\); resume it, or choose an"):
        train_in(data, out, recipe)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["best.safetensors", "log.csv", "recipe.json", "report.md"])
def test_weights_without_a_state_are_not_overwritten(run: Run, tmp_path: Path, name: str) -> None:
    data, finished, recipe = run
    shutil.copy(finished / name, tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=rf"already contains a run \({name}\); choose another"):
        train_in(data, tmp_path, recipe)
    assert contents(tmp_path) == before


def test_other_terms_are_refused_with_the_way_out(run: Run, tmp_path: Path) -> None:
    data, out, recipe = run
    other = replace(recipe, lr=0.01, crop=(32, 32))
    with pytest.raises(InputError, match="a run with other terms") as caught:
        train_in(data, out, other, resume=True, seed=7, validation=None)
    for text in (
        "crop was [48, 64], is [32, 32]",
        "lr was 0.02, is 0.01",
        "seed was 0, is 7",
        "validation images was 2, is null",
        f"-w {out}/last.safetensors -o ANOTHER_FOLDER",
    ):
        assert text in str(caught.value)
    assert "epochs" not in str(caught.value)
    dataset = open_dataset("folder", data, "val")
    model = tiny.network(dataset.label_set, dropout=0.1)
    with pytest.raises(InputError, match="images was 5, is 2"):
        train(model, dataset, recipe, out, validation=dataset, resume=True)


def test_missing_run_cannot_be_resumed(run: Run, tmp_path: Path) -> None:
    data, _, recipe = run
    with pytest.raises(InputError, match=r"has no run to resume: .*state\.pt is missing"):
        train_in(data, tmp_path / "run", recipe, resume=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "run", tmp_path / ("x" * 300), Path("/proc/run")):
        for resume in (False, True):
            with pytest.raises(InputError, match=r"cannot be the folder of a run|has no run to re"):
                train_in(data, folder, recipe, resume=resume)


def test_leftovers_are_removed_and_other_part_files_kept(run: Run, tmp_path: Path) -> None:
    data, finished, recipe = run
    out = copied(finished, tmp_path / "run")
    ours, theirs = out / f"{PART_PREFIX}0.pt.part", out / ".video.mp4.part"
    for path in (ours, theirs):
        path.write_bytes(b"some bytes")
    train_in(data, out, recipe, resume=True)
    assert not ours.exists()
    assert theirs.read_bytes() == b"some bytes"


# Lock


@pytest.mark.parametrize("resume", [False, True])
def test_folder_in_use_by_another_run_is_refused(run: Run, tmp_path: Path, resume: bool) -> None:
    data, finished, recipe = run
    out = tmp_path / "run"
    if resume:
        copied(finished, out)
        recipe = replace(recipe, epochs=4)
    tried: list[str] = []

    def train_too(_: RunProgress) -> None:
        if not tried:
            with pytest.raises(InputError) as caught:
                train_in(data, out, recipe, resume=resume)
            tried.append(str(caught.value))

    train_in(data, out, recipe, resume=resume, progress=train_too)
    assert tried == [f"another process trains in {out}; choose another folder, or wait for it"]
    train_in(data, out, recipe, resume=True)


# Unusable states


def edit(out: Path, change: Callable[[dict[str, Any]], object], *, sign: bool = True) -> None:
    """Change the state of a run; with `sign`, its digest matches the change."""
    state = torch.load(out / "state.pt", weights_only=True)
    change(state)
    if sign and state.pop("digest", None) is not None:
        state["digest"] = as_bytes(state_digest(state))
    torch.save(state, out / "state.pt")


def as_bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8)


def edit_history(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], None]:
    def edit_state(state: dict[str, Any]) -> None:
        history = json.loads(bytes(state["history"].numpy()))
        change(history)
        state["history"] = as_bytes(json.dumps(history))

    return edit_state


KEY = "head.classifier.weight"
ALTERED: dict[str, Callable[[dict[str, Any]], object]] = {
    "missing tensor": lambda state: state.pop(f"model.{KEY}"),
    "missing average": lambda state: state.pop(f"average.module.{KEY}"),
    "missing step": lambda state: state.pop("step"),
    "missing history": lambda state: state.pop("history"),
    "missing digest": lambda state: state.pop("digest"),
    "field of another optimizer": lambda state: state.update(
        {f"optimizer.{KEY}.exp_avg": torch.zeros_like(state[f"model.{KEY}"])}
    ),
    "unknown tensor": lambda state: state.update(more=torch.zeros(3)),
    "unknown parameter": lambda state: state.update(
        {"optimizer.no.momentum_buffer": torch.ones(1)}
    ),
    "other shape": lambda state: state.update({f"model.{KEY}": torch.zeros(3, 3)}),
    "other shape of momentum": lambda state: state.update(
        {f"optimizer.{KEY}.momentum_buffer": torch.zeros(1)}
    ),
    "other type": lambda state: state.update({f"model.{KEY}": state[f"model.{KEY}"].double()}),
    "nan": lambda state: state[f"model.{KEY}"].fill_(float("nan")),
    "nan average": lambda state: state[f"average.module.{KEY}"].fill_(float("nan")),
    "inf momentum": lambda state: state[f"optimizer.{KEY}.momentum_buffer"].fill_(float("inf")),
    "step of several numbers": lambda state: state.update(step=torch.tensor([6, 6])),
    "fractional step": lambda state: state.update(step=torch.tensor(5.5)),
    "negative step": lambda state: state["step"].fill_(-2),
    "later step": lambda state: state["step"].fill_(8),
    "history of noise": lambda state: state.update(history=torch.arange(99)),
    "history without key": edit_history(lambda history: history.pop("planned")),
    "history with unknown key": edit_history(lambda history: history.update(more=1)),
    "history of another version": edit_history(lambda history: history.update(version=9)),
    "history with text as loss": edit_history(lambda h: h["epochs"][0].update(loss="low")),
    "history with nan": edit_history(lambda h: h["epochs"][0].update(loss=float("nan"))),
    "history without epochs": edit_history(lambda history: history.update(epochs=[])),
    "history with fewer epochs": edit_history(lambda history: history["epochs"].pop()),
    "history with huge numbers": edit_history(lambda h: h["epochs"][0].update(step=10**400)),
}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED)
def test_altered_state_is_refused_and_nothing_changes(
    run: Run, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    data, finished, recipe = run
    out = copied(finished, tmp_path / "run")
    edit(out, change)
    before = contents(out)
    dataset = open_dataset("folder", data, "train")
    validation = open_dataset("folder", data, "val")
    model = tiny.network(dataset.label_set, dropout=0.1)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        train(model, dataset, recipe, out, validation=validation, resume=True)
    assert contents(out) == before
    tiny.assert_same(model.state_dict(), weights)


def test_changed_value_is_found_by_the_digest(run: Run, tmp_path: Path) -> None:
    data, finished, recipe = run
    out = copied(finished, tmp_path / "run")
    edit(out, lambda state: state[f"model.{KEY}"].add_(1e-3), sign=False)
    with pytest.raises(CheckpointError, match="was altered"):
        train_in(data, out, recipe, resume=True)


@pytest.mark.parametrize(
    "kind", ["cut", "empty", "text", "folder", "pipe", "flipped", "version 1", "weights", "list"]
)
def test_file_that_is_no_state_is_refused(run: Run, tmp_path: Path, kind: str) -> None:
    data, finished, recipe = run
    out = copied(finished, tmp_path / "run")
    state = out / "state.pt"
    content = state.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    damaged = {"cut": content[:-1000], "empty": b"", "text": b"hello", "flipped": flipped}
    state.unlink()
    if kind == "folder":
        state.mkdir()
    elif kind == "pipe":
        os.mkfifo(state)
    elif kind == "version 1":
        model = torch.load(finished / "state.pt", weights_only=True)
        old = {"step": 6, "model": model, "optimizer": {"state": {}, "param_groups": []}}
        torch.save({"terms": {"lr": 0.02}, "epochs": [], "trainer": old}, state)
    elif kind == "weights":
        torch.save(tiny.network().state_dict(), state)
    elif kind == "list":
        torch.save([torch.zeros(3)], state)
    else:
        state.write_bytes(damaged[kind])
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        train_in(data, out, recipe, resume=True)


def test_state_of_another_network_is_refused(run: Run, tmp_path: Path) -> None:
    data, finished, recipe = run
    out = copied(finished, tmp_path / "run")
    before = contents(out)
    dataset = open_dataset("folder", data, "train")
    validation = open_dataset("folder", data, "val")
    model = tiny.network(dataset.label_set, backbone="test_efficientnet", dropout=0.1)
    with pytest.raises(CheckpointError, match=r"network was .*test_resnet.*, is .*test_efficientn"):
        train(model, dataset, recipe, out, validation=validation, resume=True)
    assert contents(out) == before


# Full disks


def test_full_disk_is_one_error_and_the_run_can_be_resumed(run: Run, tmp_path: Path) -> None:
    data, finished, recipe = run
    out, report = tmp_path / "run", tmp_path / "report.txt"
    for limit in (2_000, 200_000, 900_000, 900_000):  # the last time, a state may exist
        tiny.run(train_on_full_disk, data, out, recipe, limit, report)
        assert re.fullmatch(r"InputError: [^\n]* cannot be written: [^\n]*", report.read_text())
        assert not list(out.glob("*.part"))
    resume_killed(data, out, recipe)
    assert outcome(out) == outcome(finished)


def train_on_full_disk(
    rank: int, data: Path, out: Path, recipe: Recipe, limit: int, report: Path
) -> None:
    """Train where no file can be larger than `limit` bytes; write the error to a file."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        resume_killed(data, out, recipe)
        report.write_text("no error")
    except BaseException as error:
        report.write_text(f"{type(error).__name__}: {error}")


# Killed processes


def train_until(rank: int, data: Path, out: Path, recipe: Recipe, kind: str, limit: int) -> None:
    """Train in this process and kill it as `kind` and `limit` state; resume an existing run."""
    torch.set_num_threads(1)
    steps = itertools.count(1)
    calls = itertools.count(1)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        # Python's own file operations are audited.
        if event in ("open", "os.rename", "os.remove") and str(out) in str(arguments[0]):
            die(kind == "call" and next(calls) == limit)

    def progress(_: RunProgress) -> None:
        die(kind == "step" and next(steps) == limit)

    if kind == "size":  # the kernel kills it when it writes a larger file
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.addaudithook(watch)
    resume_killed(data, out, recipe, progress=progress)


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
    for path in out.glob("[!.]*.safetensors"):
        read_card_of(path)
        digest(path)
    if (out / "state.pt").exists():
        torch.load(out / "state.pt", weights_only=True)
    if (out / "log.csv").exists():
        assert all(None not in row.values() for row in read_log(out))


KILLS = {
    "while a file is written": [("size", 200_000), ("size", 1_600_000), ("call", 30)],
    "between files": [("call", number) for number in (3, 5, 7, 9, 11, 13, 15)],
    "between steps": [("step", 1), ("step", 2), ("step", 3)],
}


@pytest.mark.parametrize("kills", KILLS.values(), ids=KILLS)
def test_killed_run_resumes_to_the_same_result(
    run: Run, tmp_path: Path, kills: list[tuple[str, int]]
) -> None:
    data, expected, recipe = run
    for kind, limit in kills:
        with pytest.raises(ProcessExitedException, match=r"SIGKILL|SIGXFSZ"):
            tiny.run(train_until, data, tmp_path / "run", recipe, kind, limit)
        assert_files_are_whole(tmp_path / "run")
    resume_killed(data, tmp_path / "run", recipe)
    assert outcome(tmp_path / "run") == outcome(expected)


def test_run_killed_at_any_time_resumes_to_the_same_result(run: Run, tmp_path: Path) -> None:
    data, expected, recipe = run
    for seconds in (0.1, 0.5, 0.8):
        kill_after(seconds, data, tmp_path / "run", recipe)
        assert_files_are_whole(tmp_path / "run")
    resume_killed(data, tmp_path / "run", recipe)
    assert outcome(tmp_path / "run") == outcome(expected)
