"""The command: data on stdout, all else on stderr, and an exit status that can be trusted."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isanet_zoo.cache import CacheEntry
from isanet_zoo.commands.main import main, make_parser
from isanet_zoo.manifest.lookup import list_models
from tests.conftest import TinyZoo


def test_list_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "*resnet50*", "--dataset", "voc"]) == 0
    header, *rows = (re.split(" {2,}", row) for row in capsys.readouterr().out.splitlines())
    assert header == [
        "name", "by", "classes", "params M", "crop", "schedule", "mIoU", "ms+flip", "trust",
        "commercial use",
    ]  # fmt: skip
    own = "isanet_resnet50os8_voc"
    assert [(name, by, miou, multi) for name, by, *_, miou, multi, _, _ in rows] == [
        (own, "ssseg", "76.99", "-"),
        (f"{own}.mmseg_512x512_20k", "mmseg", "76.78", "77.79"),
        (f"{own}.mmseg_512x512_40k", "mmseg", "76.20", "77.22"),
        (f"{own}.paddle_512x512_40k", "paddle", "79.69", "80.54"),
    ]
    assert main(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == list_models()
    assert len(entries) == 47
    assert entries[-1]["metrics"][0]["reproduced"] is None


def test_list_and_info_state_whether_commercial_use_is_permitted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list", "--dataset", "ade20k"]) == 0
    columns = [re.split(" {2,}", row) for row in capsys.readouterr().out.splitlines()]
    assert {(row[1], row[-1]) for row in columns} == {
        ("by", "commercial use"), ("ssseg", "yes"), ("mmseg", "yes"), ("bpkd", "no"),
    }  # fmt: skip
    assert main(["info", "isanet_resnet18os8_ade20k.bpkd_plain"]) == 0
    out = capsys.readouterr().out
    for line in (
        "weights: non-commercial purposes only, under the text of BSD-2-Clause; commercial use by",
        "commercial_use: False",
        "method: plain\nteacher: none",
        "pretraining: open-mmlab://resnet18_v1c",
        "  window: none",
        "size: not known",
    ):
        assert line in out


def test_info_names_what_is_known_and_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "isanet_resnet101os8_cityscapes"]) == 0
    out = capsys.readouterr().out
    assert "sha256: not known" in out
    assert "value: 80.58" in out
    assert "reproduced: not known" in out
    assert "trust: unverified" in out
    assert "Apache-2.0" in out
    assert "pan.baidu.com" in out
    assert main(["info", "isanet_resnet101os8_cityscapes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label_set"]["official_ids"][0] == 7


def test_unknown_name_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "isanet_resnet50_voc"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("isanet-zoo: error: no model is called 'isanet_resnet50_voc'")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["fly"], ["download"], ["predict"]])
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_download_prints_paths_and_goes_on_past_failures(
    tiny: TinyZoo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", "nonsense", "isanet_tiny"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tiny.weights.path())]
    assert "nonsense" in captured.err
    assert "isanet_tiny.pth" in captured.err  # the progress bar
    assert main(["download", "--all"]) == 0
    assert capsys.readouterr().err == "isanet-zoo: isanet_tiny: pinned weights\n"  # no bar


def test_offline_failure_says_the_ways_out(
    tiny_zoo: TinyZoo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", "isanet_tiny"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("isanet-zoo: error: isanet_tiny.pth is not on this machine")  # no bar
    assert "ISANET_ZOO_OFFLINE" in err
    assert "ISANET_ZOO_MIRROR" in err
    assert str(tiny_zoo.weights.path().with_name("isanet_tiny.pth")) in err


def test_verify_and_cache(tiny: TinyZoo, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    assert "nothing is cached" in capsys.readouterr().err
    assert main(["download", "isanet_tiny"]) == 0
    assert main(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1]) == {"isanet_tiny": None}
    model = CacheEntry.of("isanet_tiny").model
    content = bytearray(model.read_bytes())
    content[-100] ^= 1
    model.write_bytes(content)
    assert main(["verify"]) == 1
    assert "sha256" in capsys.readouterr().out
    assert main(["cache"]) == 0
    folder, row = capsys.readouterr().out.splitlines()
    assert folder == str(model.parents[1])
    assert row.split()[0] == "isanet_tiny"
    assert main(["cache", "--remove", "isanet_tiny", "../photos"]) == 1
    assert not model.parent.exists()
    assert "../photos is not a name of weights" in capsys.readouterr().err
    assert main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == {}


def test_env_reports_versions_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert f"torch: {torch.__version__.partition('+')[0]}" in out
    assert "ISANET_ZOO_OFFLINE: 1" in out
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ISANET_ZOO_MIRROR"] == "not set"


def test_list_and_env_answer_where_torch_is_broken(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from isanet_zoo.commands.main import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(command: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-c", code, command]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    assert run("list").returncode == 0
    assert run("download").returncode == 2
    assert run("env").returncode == 1
    assert "problem: libcudart.so.13" in run("env").stdout


@pytest.mark.parametrize("arguments", [["-v", "download"], ["download", "-v"]])
def test_verbose_logs_to_stderr_and_leaves_no_handler(
    arguments: list[str], tiny: TinyZoo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "isanet_tiny"]) == 0
    assert f"ssseg weights from {tiny.published}" in capsys.readouterr().err
    logger = logging.getLogger("isanet_zoo")
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)


@pytest.mark.parametrize(
    ("command", "default"),
    [
        (["list"], False),
        (["predict", "a.jpg"], False),
        (["train", "isanet_tiny", "--data", "."], False),
        (["convert", "a.pth", "a.safetensors", "-m", "isanet_tiny"], True),
        (["export", "isanet_tiny", "a.onnx"], True),
    ],
)
def test_only_convert_and_export_are_verbose_by_default(command: list[str], default: bool) -> None:
    parser = make_parser()
    assert parser.parse_args(command).verbose is default
    assert parser.parse_args(["-v", *command]).verbose is True
    assert parser.parse_args([*command, "-v"]).verbose is True


@pytest.mark.parametrize("command", ["list", "--help"])
def test_answers_without_loading_anything_large(command: str) -> None:
    code = (
        "import sys; from isanet_zoo.commands.main import main\n"
        f"try: main([{command!r}])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'timm', 'numpy', 'PIL', 'safetensors'} & sys.modules.keys()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert out.splitlines()[-1] == "[]"
