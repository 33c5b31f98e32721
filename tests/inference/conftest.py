"""Fixtures of the tests of prediction."""

from __future__ import annotations

from tests.engines.conftest import exported as exported
