"""Fixtures of the commands' tests."""

from __future__ import annotations

import pytest

from tests.conftest import TinyZoo
from tests.engines.conftest import exported as exported


@pytest.fixture
def tiny(tiny_zoo: TinyZoo, monkeypatch: pytest.MonkeyPatch) -> TinyZoo:
    """Make the published file of `isanet_tiny` available."""
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    return tiny_zoo
