from __future__ import annotations

import argparse
import logging
import shlex
import subprocess
import sys

import pytest

from isanet_zoo.commands import main as main_module
from isanet_zoo.commands.main import COMMANDS, MAINTAIN, main, make_parser
from tests.conftest import TinyZoo


def test_unknown_name_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "isanet_resnet50_voc"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("isanet-zoo: error: no model is called 'isanet_resnet50_voc'")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["fly"], ["download"], ["predict"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "x", "\x1b[2J"],
        ["info", "x", "\x1b" * 5000],
        ["predict", "x", "--tile", "9" * 5000],
    ],
    ids=["escape", "escapes", "digits"],
)
def test_wrong_usage_is_shown_safely(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.isprintable()
    assert len(last) < 4100


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
def test_command_without_a_network_imports_no_large_package(command: str) -> None:
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


def test_log_record_with_control_characters_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with main_module._log_to_stderr(logging.WARNING):
        logging.getLogger("isanet_zoo.test").warning("folder %s", "\x1b[2J\x07")
    assert capsys.readouterr().err == "isanet-zoo: folder \\x1b[2J\\x07\n"


@pytest.mark.parametrize("name", COMMANDS | MAINTAIN)
def test_help_of_a_command_has_an_example_and_describes_each_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    example = capsys.readouterr().out.rpartition("example: isanet-zoo ")[2]
    make_parser().parse_args(shlex.split(example))
    command = argparse.ArgumentParser()
    (COMMANDS | MAINTAIN)[name][2](command)
    assert [action.dest for action in command._actions if not action.help] == []


def test_help_lists_commands_for_maintainers_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands, maintain = capsys.readouterr().out.split("commands for maintainers:")
    assert all(f"  {name} " in commands for name in COMMANDS)
    assert all(f"  {name} " in maintain and f"  {name} " not in commands for name in MAINTAIN)
