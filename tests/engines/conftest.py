"""Fixtures of the engines' tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def exported(shared_folder: Path) -> Path:
    """A folder with the files of `make_files`."""
    from tests.engines.exported import make_files  # needs the extra `onnx`

    make_files(shared_folder / "exported")
    return shared_folder / "exported"
