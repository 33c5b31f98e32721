from __future__ import annotations

import os

import pytest

from isanet_zoo.commands.main import main
from tests.conftest import TinyZoo


def test_pin_prints_the_hash(
    tiny_zoo: TinyZoo, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tiny_zoo.manifest.read_text("utf-8")
    source = tiny_zoo.weights.sources[0]
    tiny_zoo.manifest.write_text(manifest.replace(source, tiny_zoo.published.as_uri()), "utf-8")
    assert main(["pin", "isanet_tiny", "--manifest", str(tiny_zoo.manifest)]) == 0
    name, sha256 = capsys.readouterr().out.split()
    assert name == "isanet_tiny"
    assert f'"sha256": "{sha256}"' in tiny_zoo.manifest.read_text("utf-8")


@pytest.mark.parametrize("command", [["pin", "isanet_tiny"], ["mirror", "a/b", "isanet_tiny"]])
def test_manifest_that_cannot_be_written_is_an_error_before_the_work(
    tiny_zoo: TinyZoo,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert main([*command, "--manifest", str(tiny_zoo.manifest)]) == 1
    err = capsys.readouterr().err
    assert err == (
        f"isanet-zoo: error: {tiny_zoo.manifest} cannot be written: no permission to write to "
        f"{tiny_zoo.manifest.parent}\n"
    )
