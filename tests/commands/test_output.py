from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isanet_zoo.commands import output
from isanet_zoo.commands.output import robust_streams


def run(command: str, code: str = "", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command, in which $PYTHON starts Python and $CODE is code."""
    environment = os.environ | {"PYTHON": sys.executable, "CODE": code} | variables
    environment.pop("PYTHONUNBUFFERED", None)  # buffers are flushed once more at the exit
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=environment, capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_code_continues_after_the_reader_of_a_stream_is_gone(stream: str, tmp_path: Path) -> None:
    code = f"""
import sys
from isanet_zoo.commands.output import robust_streams
with robust_streams():
    for number in range(20_000):
        print(number, file=sys.{stream})
open({str(tmp_path / "end")!r}, "w").close()
"""
    pipe = {"stdout": '"$PYTHON" -c "$CODE"', "stderr": '("$PYTHON" -c "$CODE" 2>&1 >/dev/null)'}
    done = run(f"{pipe[stream]} | head -n 1", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0\n", b"")
    assert (tmp_path / "end").exists()


@pytest.mark.parametrize("arguments", ["list", "info isanet_resnet50os8_voc", "--help"])
def test_command_whose_reader_is_gone_succeeds_silently(arguments: str) -> None:
    done = run(f'"$PYTHON" -m isanet_zoo {arguments} | head -n 1')
    assert (done.returncode, done.stdout.count(b"\n"), done.stderr) == (0, 1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_command_whose_output_cannot_be_stored_is_one_error() -> None:
    done = run('"$PYTHON" -m isanet_zoo list > /dev/full')
    assert done.returncode == 1
    assert done.stderr == b"isanet-zoo: error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_command_without_a_stream_succeeds(closed: str) -> None:
    assert run(f'"$PYTHON" -m isanet_zoo list {closed}').returncode == 0


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", "M\\xfcller \\udcff"), ("utf-8", "Müller \\udcff")]
)
def test_characters_that_a_stream_lacks_are_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str, expected: str
) -> None:
    buffers = io.BytesIO(), io.BytesIO()
    for name, buffer in zip(("stdout", "stderr"), buffers, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding))
    with robust_streams():
        sys.stdout.write("Müller \udcff\n")
        output.complain("Müller \udcff")
    out, err = (buffer.getvalue().decode(encoding) for buffer in buffers)
    assert out == f"{expected}\n"
    assert err == f"isanet-zoo: error: {expected}\n"


def test_streams_are_restored() -> None:
    before = sys.stdout, sys.stderr
    with robust_streams():
        assert sys.stdout is not before[0]
    assert (sys.stdout, sys.stderr) == before


def test_json_is_valid_in_every_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, "ascii"))
    value = {"image": "Müller \udcff.png"}
    with robust_streams():
        output.print_json(value)
    assert json.loads(buffer.getvalue()) == value


def test_table_aligns_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table([("name", "MB"), ("a", "1.5"), ("long name", "100.0")])
    assert capsys.readouterr().out == "name          MB\na            1.5\nlong name  100.0\n"


def test_tree_prints_one_value_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_tree({"a": None, "b": [1, 2], "c": [{"d": "e"}]})
    assert capsys.readouterr().out == "a: not known\nb: 1, 2\nc:\n  d: e\n"
