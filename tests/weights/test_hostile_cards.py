"""Weight files with a hostile description predict finite values in bounds, or are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests import processes
from tests.weights import hostile_cards


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
def test_hostile_descriptions_are_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    outcomes = processes.call(hostile_cards.read_all, tmp_path)
    refused = {name for name in outcomes if outcomes[name].startswith("CheckpointError: ")}
    assert {name for name in outcomes if name.startswith("hostile")} <= refused
    others = {name: outcomes[name] for name in outcomes.keys() - refused}
    wide = {name: others.pop(name) for name in set(others) if name.startswith("wide")}
    assert set(others.values()) == {"finite"}, others
    assert set(wide.values()) == {"finite", "expensive"}, wide
    assert len(others) > 15
    assert list(wide.values()).count("finite") > 3
    assert any(name.startswith("wide") for name in refused)
    assert max(map(len, outcomes.values())) < 4100  # keys of another network are listed
    assert all(outcome.isprintable() for outcome in outcomes.values())


SIDES = st.tuples(*[st.integers(1, 150)] * 2)
WINDOWS = st.integers(32, 64).map(lambda side: {"window": (side, side), "stride": (side, side)})
PREPROCESS = st.fixed_dictionaries(
    {
        "resize": st.none() | SIDES,
        "pad": st.none() | SIDES,
        "mean": st.tuples(*[st.floats(-1000, 1000)] * 3),
        "std": st.tuples(*[st.floats(0.01, 10_000)] * 3),
        "order": st.sampled_from(["rgb", "bgr"]),
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("cards") / "model.safetensors"
    return path, hostile_cards.write_file(path)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    preprocess=PREPROCESS,
    window=st.just({"window": None, "stride": None}) | WINDOWS,
    partition=st.tuples(st.integers(1, 32), st.integers(1, 32)),
)
def test_description_within_its_ranges_predicts_finite_values_or_is_refused(
    file: tuple[Path, dict[str, Any]],
    preprocess: dict[str, Any],
    window: dict[str, Any],
    partition: tuple[int, int],
) -> None:
    path, document = file
    text = hostile_cards.changed(document, "preprocess", preprocess | window)
    text["network"]["head"]["partition"] = partition
    hostile_cards.rewrite(path, json.dumps(text))
    found = hostile_cards.outcome(path)
    assert found == "finite" or found.startswith("CheckpointError: ")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(address=st.sampled_from(sorted(hostile_cards.HOSTILE)), value=JSON)
def test_description_with_any_value_in_a_field_predicts_or_is_refused(
    file: tuple[Path, dict[str, Any]], address: str, value: object
) -> None:
    path, document = file
    hostile_cards.rewrite(path, json.dumps(hostile_cards.changed(document, address, value)))
    found = hostile_cards.outcome(path)
    assert found == "finite" or found.startswith("CheckpointError: ")
