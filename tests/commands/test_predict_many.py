"""Command `predict` on many images: shards, resumed runs, nested folders, choice of outputs."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import isanet_zoo
from isanet_zoo.commands.main import main
from isanet_zoo.inference import folders, predictor
from tests import reference
from tests.conftest import TinyZoo
from tests.processes import forkserver
from tests.weights.server import running

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """A folder of seven small images in three folders; the current folder is above it."""
    folder = tmp_path / "photos"
    with Image.open(reference.DATA / "images" / "home.jpg") as home:
        for number, name in enumerate(("a", "b", "x/a", "x/b", "x/y/a", "x/y/b", "z/a")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            home.crop((40 * number, 0, 40 * number + 64, 48)).save(folder / f"{name}.jpg")
    return folder


def predict(*arguments: object) -> int:
    """Run `isanet-zoo predict` with the tiny model."""
    return main(["predict", *map(str, arguments), "-m", "isanet_tiny"])


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of all files in a folder and those below it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.usefixtures("tiny")
class TestShards:
    def test_shards_of_a_nested_folder_make_the_files_of_one_run(
        self, nested: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        out, parts = tmp_path / "out", tmp_path / "parts"
        assert predict(nested, "-r", "-o", out) == 0
        capsys.readouterr()
        made = []
        for index in range(3):
            assert predict(nested, "-r", "-o", parts, "--shard", f"{index}/3", "--json") == 0
            made.append([*map(json.loads, capsys.readouterr().out.splitlines())])
        assert [len(shard) for shard in made] == [3, 2, 2]
        assert [Path(line["image"]).parent.name for line in made[1]] == ["photos", "y"]
        assert len(files_of(out)) == 14
        assert "x/y/a.overlay.png" in files_of(out)
        assert files_of(parts) == files_of(out)
        assert predict(nested, "-o", tmp_path / "flat", "--shard", "7/9") == 0  # an empty one

    def test_process_of_torchrun_takes_its_part_of_the_shard(
        self, nested: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited = []
        monkeypatch.setattr(
            isanet_zoo.commands.predict,
            "wait_for_others",
            lambda processes: waited.append(processes),
        )
        for variable, value in (
            ("TORCHELASTIC_RUN_ID", "x"), ("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")
        ):  # fmt: skip
            monkeypatch.setenv(variable, value)
        assert predict(nested, "-r", "--none", "--shard", "1/2", "--device", "cpu") == 0
        captured = capsys.readouterr()
        shown = [line.split()[0] for line in captured.out.splitlines()]
        assert shown == [str(nested / "x" / "b.jpg")]  # the fourth of seven
        assert waited == [2]
        assert "isanet-zoo: " not in captured.err
        assert predict("-", "--none") == 1
        assert "share one standard input" in capsys.readouterr().err

    @pytest.mark.parametrize("text", ["3/3", "1", "a/2", "-1/2", "0/0", "1/2/3", " 1/2", "٣/9"])
    def test_wrong_shard_shows_the_syntax(self, text: str, capsys: Captured) -> None:
        with pytest.raises(SystemExit, match="2"):
            predict("a.png", f"--shard={text}")
        assert "is not a shard such as 0/4, the first of four" in capsys.readouterr().err


def test_killed_run_is_resumed_by_two_processes_to_the_files_of_one_run(
    nested: Path,
    tiny_zoo: TinyZoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    """Kill a process at its first results, then resume as `torchrun` would."""
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    model, out = tmp_path / "tiny.safetensors", tmp_path / "out"
    isanet_zoo.save_model(isanet_zoo.create_model("isanet_tiny", pretrained=True), model)
    for number in range(24):
        shutil.copy(nested / "a.jpg", nested / "z" / f"{number}.jpg")
    (nested / "x" / "bad.jpg").write_text("not an image")
    run = ["predict", str(nested), "-r", "-m", str(model), "--device", "cpu", "-o"]
    assert main([*run, str(tmp_path / "one")]) == 1
    killed = _start([*run, str(out)])
    while len([*out.rglob("*.png")]) < 5:
        assert killed.is_alive()
        time.sleep(0.01)
    killed.kill()
    killed.join()
    done = {path: path.stat().st_mtime_ns for path in out.rglob("*.overlay.png")}
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(store.port)),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    other = _start([*run, str(out), "--resume"])
    monkeypatch.setenv("RANK", "0")
    status = main([*run, str(out), "--resume"])
    assert store.add("isanet-zoo predict 0", 0) == 2  # it has waited for the other one
    other.join()
    assert [status, other.exitcode] in ([0, 1], [1, 0])  # that of the bad image
    assert {path: path.stat().st_mtime_ns for path in done} == done
    visible = {n: data for n, data in files_of(out).items() if ".isanet_zoo-" not in n}
    assert visible == files_of(tmp_path / "one")
    capsys.readouterr()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert main([*run, str(out), "--resume", "--json"]) == 1  # tries the error again
    captured = capsys.readouterr()
    assert "bad.jpg is not an image file" in json.loads(captured.out)["error"]
    assert "31 images are skipped, whose results exist" in captured.err


def _start(arguments: list[str]) -> BaseProcess:
    """Start `isanet-zoo` as a process, with the variables of this one."""
    process: BaseProcess = forkserver().Process(target=_run, args=(arguments, dict(os.environ)))
    process.start()
    return process


def _run(arguments: list[str], variables: dict[str, str]) -> None:
    os.environ.update(variables)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until its end
    sys.exit(main(arguments))


@pytest.mark.usefixtures("tiny")
class TestOutputs:
    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            ("", "labels overlay"),
            ("--labels", "labels"),
            ("--overlay", "overlay"),
            ("--confidence", "confidence"),
            ("--confidence --raw", "labels confidence"),
            ("--none", ""),
        ],
    )
    def test_options_choose_the_files(
        self, options: str, parts: str, nested: Path, tmp_path: Path, capsys: Captured
    ) -> None:
        out = tmp_path / "out"
        assert predict(nested / "a.jpg", *options.split(), "-o", out) == 0
        assert out.exists() == bool(parts)
        expected = [str(out / f"a.{part}.png") for part in parts.split()]
        lines = capsys.readouterr().out.splitlines()
        assert lines == expected or (not parts and "a.jpg  64x48  " in lines[0])
        assert [*files_of(out)] == sorted(Path(file).name for file in expected)

    def test_raw_labels_are_grey_levels(self, nested: Path, tmp_path: Path) -> None:
        assert predict(nested / "a.jpg", "-o", tmp_path / "palette") == 0
        assert predict(nested / "a.jpg", "--raw", "-o", tmp_path / "raw") == 0
        with (
            Image.open(tmp_path / "palette" / "a.labels.png") as palette,
            Image.open(tmp_path / "raw" / "a.labels.png") as raw,
        ):
            assert (palette.mode, raw.mode) == ("P", "L")
            np.testing.assert_array_equal(np.asarray(palette), np.asarray(raw))

    @pytest.mark.parametrize("option", ["--labels", "--raw", "--resume", "--overwrite"])
    def test_none_contradicts_options_about_files(self, option: str, capsys: Captured) -> None:
        assert predict("a.png", "--none", option) == 1
        assert "--none writes no files" in capsys.readouterr().err

    def test_terminal_shows_a_line_per_image(
        self, nested: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        assert predict(nested, "-o", tmp_path / "out") == 0
        lines = capsys.readouterr().out.splitlines()
        pattern = r"{}  64x48  ([a-z]+ \d+\.\d %(, )?){{1,3}}  \d+\.\d\d s"
        for line, name in zip(lines, ("a.jpg", "b.jpg"), strict=True):
            assert re.fullmatch(pattern.format(re.escape(str(nested / name))), line)

    def test_json_lines_are_written_as_images_are_done(
        self, nested: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (nested / "bad.jpg").touch()
        printed = []
        real = folders.segment_files

        def watched(*arguments: object) -> object:
            for result in real(*arguments):  # type: ignore[arg-type]
                yield result
                printed.append(capsys.readouterr().out)

        monkeypatch.setattr(folders, "segment_files", watched)
        assert predict(nested, "--json", "-o", tmp_path / "out") == 1
        lines = [json.loads(line) for line in printed]
        assert {Path(line["image"]).name for line in lines} == {"a.jpg", "b.jpg", "bad.jpg"}
        good = [line for line in lines if "error" not in line]
        assert [line.keys() for line in good] == [
            {"image", "width", "height", "label_set", "classes", "files", "seconds"}
        ] * 2
        assert (good[0]["width"], good[0]["height"]) == (64, 48)
        with Image.open(good[0]["files"][0]) as labels:
            counts = np.bincount(np.asarray(labels).ravel())
        fractions = {entry["id"]: entry["fraction"] for entry in good[0]["classes"]}
        assert fractions == {i: n / (64 * 48) for i, n in enumerate(counts) if n}


@pytest.mark.usefixtures("tiny")
class TestInputs:
    def test_missing_files_and_videos_are_noticed_before_the_network_is_loaded(
        self, nested: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(predictor, "Predictor", None)
        monkeypatch.setattr("isanet_zoo.zoo.create_model", None)
        (tmp_path / "list.txt").write_text(f"{nested}/a.jpg\n{nested}/gone.jpg\n")
        assert predict(tmp_path / "list.txt", "-o", tmp_path / "out") == 1
        assert f"1 of the images do not exist:\n  {nested}/gone.jpg" in capsys.readouterr().err
        assert predict(nested / "a.jpg", "clip.mp4", "-o", tmp_path / "out") == 1
        assert "predictor.stream(frame.to_image() for frame in frames)" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_list_on_standard_input_and_url_are_segmented(
        self, nested: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("ISANET_ZOO_OFFLINE")
        listed = io.TextIOWrapper(io.BytesIO(f"{nested}/a.jpg\n".encode()))
        monkeypatch.setattr(sys, "stdin", listed)
        with running() as server:
            source = server.source((nested / "a.jpg").read_bytes(), name="photo%201.jpg")
            assert predict("-", source.url, "-o", tmp_path / "out") == 0
        files = files_of(tmp_path / "out")
        assert [*files] == [
            f"{name}.{part}.png" for name in ("a", "photo 1") for part in ("labels", "overlay")
        ]
        assert files["a.labels.png"] == files["photo 1.labels.png"]
        assert files["a.overlay.png"] == files["photo 1.overlay.png"]
