from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isanet_zoo.commands.main import main
from isanet_zoo.manifest.lookup import list_models


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


def test_info_prints_known_and_unknown_facts(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_env_reports_versions_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert f"torch: {torch.__version__.partition('+')[0]}" in out
    assert "ISANET_ZOO_OFFLINE: 1" in out
    assert re.search(r"dtype_auto: b?float\d\d \(a convolution: float32 [\d.]+ ms, bfloat16 ", out)
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ISANET_ZOO_MIRROR"] == "not set"


def test_list_and_env_work_if_torch_is_broken(tmp_path: Path) -> None:
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


def test_list_and_info_work_with_an_unreadable_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def deny(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("isanet_zoo.cache.open_regular", deny)
    assert main(["list", "isanet_resnet50os8_voc"]) == 0
    assert main(["info", "isanet_resnet50os8_voc"]) == 0
    assert "trust: unverified" in capsys.readouterr().out
