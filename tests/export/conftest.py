"""Fixtures of the tests of the export."""

from __future__ import annotations

from tests.engines.conftest import exported as exported
