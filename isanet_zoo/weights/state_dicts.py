"""Search for a network's state dict in the content of a weight file."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from isanet_zoo.errors import CheckpointError, printable
from isanet_zoo.weights.pickles import RESAVE, Inert
from isanet_zoo.weights.stored import Stored
from isanet_zoo.weights.tensors import list_keys, plain_key

if TYPE_CHECKING:
    from isanet_zoo.weights.containers import WeightFile

logger = logging.getLogger(__name__)

MAX_DEPTH = 8  # of nested dicts that are searched
MAX_KEY = 500  # letters of a tensor's name
MAX_PREFIXES = 16  # that are compared in one dict

PREFERRED = ("model", "state_dict")  # where most scripts put the weights
COPIES = ("ema", "swa", "avg", "averaged", "shadow", "teacher")  # of the weights


class _Candidate(NamedTuple):
    """A state dict: where in the file it is, the prefix of its keys, and the dict it is in."""

    where: str
    prefix: str
    entries: Mapping[str, Stored | None]

    def __str__(self) -> str:
        place = ".".join(filter(None, (self.where, self.prefix))) or "the file"
        return f"'{printable(place, 80)}'"

    @property
    def rank(self) -> tuple[bool, int]:
        """Sort key: weights under a usual name come first, averaged copies come last."""
        words = f"{self.where}.{self.prefix}".lower().replace("_", ".").split(".")
        usual = PREFERRED.index(self.where) if self.where in PREFERRED else len(PREFERRED)
        return any(word in COPIES for word in words), usual


def find_state(file: WeightFile, markers: Iterable[str]) -> dict[str, Stored]:
    """Return the tensors of a network, from anywhere in a file.

    They may be in nested dicts under any key, after any common prefix, and beside counters. Where
    several state dicts match, those under ``"model"`` and ``"state_dict"`` are preferred, then the
    first; averaged copies come last. The choice is logged.

    Args:
        file: the file.
        markers: beginnings of keys, of which the network's state dict has at least one.

    Returns:
        Key without prefix -> tensor. If nothing matches, the largest dict of tensors.

    Raises:
        CheckpointError: there is no dict of tensors, or a value in it is not a dense tensor.
    """
    markers = tuple(markers)
    found: list[_Candidate] = []
    largest: dict[str, Stored] = {}
    for where, mapping in _mappings(file.content):
        entries = _entries(file, mapping)
        tensors = {key: value for key, value in entries.items() if value is not None}
        largest = max(largest, tensors, key=len)
        found += [_Candidate(where, prefix, entries) for prefix in _prefixes(tensors, markers)]
    if not largest:
        raise CheckpointError(_describe(file))
    if not found:
        return largest
    chosen, *others = sorted(found, key=lambda candidate: candidate.rank)
    if others:
        logger.warning(
            "%s has several sets of weights; loading %s, not %s",
            *(file.name, chosen, list_keys(others)),
        )
    return _select(chosen, others, file.name)


def _entries(file: WeightFile, mapping: Mapping[object, object]) -> dict[str, Stored | None]:
    """Return what has a tensor's name in a dict; None for what is not a tensor."""
    return {
        plain_key(str(key)): file.find_tensor(value)
        for key, value in mapping.items()
        if type(key) is int or (isinstance(key, str) and len(key) <= MAX_KEY)
    }


def _prefixes(keys: Iterable[str], markers: tuple[str, ...]) -> list[str]:
    """Return what precedes a marker in the keys, without repeats."""
    found: dict[str, None] = {}
    for key, marker in itertools.product(keys, markers):
        if key.startswith(marker):
            found[""] = None
        elif (at := key.find(f".{marker}")) >= 0:
            found[key[: at + 1]] = None
        if len(found) == MAX_PREFIXES:
            break
    return list(found)


def _select(chosen: _Candidate, others: list[_Candidate], name: str) -> dict[str, Stored]:
    """Return the tensors after the prefix of a candidate, without counters beside them."""
    copies = tuple(
        other.prefix
        for other in others
        if other.entries is chosen.entries and other.prefix.startswith(chosen.prefix)
    )
    tensors, ignored, strange = {}, [], []
    for key, value in chosen.entries.items():
        rest = key.removeprefix(chosen.prefix)
        is_counter = "." not in rest and (value is None or not value.shape)
        if not key.startswith(chosen.prefix) or key.startswith(copies) or is_counter:
            ignored.append(key)
        elif value is None:
            strange.append(key)
        else:
            tensors[rest] = value
    if strange:
        raise CheckpointError(
            f"{name} is not safe to load: {list_keys(strange)} are not dense tensors; save it "
            f"again, from the program that wrote it: {RESAVE}"
        )
    if ignored:
        logger.info("%s: loading %s without %s", name, chosen, list_keys(ignored))
    return tensors


def _mappings(content: object) -> Iterator[tuple[str, Mapping[object, object]]]:
    """Yield nested dicts and pickled modules with their address, outer ones first, each once."""
    level: list[tuple[str, object]] = [("", content)]
    seen: set[int] = set()
    for _ in range(MAX_DEPTH):
        following: list[tuple[str, object]] = []
        for where, value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Inert) and isinstance(value.state, dict):
                following.append((where, value.state))
            if isinstance(value, dict) and "_modules" in value:
                yield where, _flatten(value, seen)
                continue
            if isinstance(value, dict):
                yield where, value
            following += [(f"{where}.{key}".lstrip("."), child) for key, child in _children(value)]
        level = following


def _children(value: object) -> Iterator[tuple[str, object]]:
    """Yield the containers in a dict, list or tuple, with their key or index."""
    pairs: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    for key, child in pairs:
        if isinstance(child, Inert) or (isinstance(child, (dict, list, tuple)) and child):
            yield printable(key if isinstance(key, (str, int)) else type(key).__name__, 40), child


def _flatten(state: Mapping[object, object], seen: set[int]) -> dict[object, object]:
    """Return the parameters and buffers of a pickled `torch.nn.Module`, from its state."""
    entries: dict[object, object] = {}
    pending: list[tuple[str, object]] = [("", state)]
    while pending:
        prefix, parts = pending.pop()
        if not isinstance(parts, dict) or len(prefix) > MAX_KEY:
            continue
        for kind in ("_parameters", "_buffers", "_modules"):
            own = parts.get(kind)
            for key, value in own.items() if isinstance(own, dict) else ():
                if kind != "_modules" and value is not None:
                    entries[f"{prefix}{key}"] = value
                elif isinstance(value, Inert) and id(value) not in seen:
                    seen.add(id(value))
                    pending.append((f"{prefix}{key}.", value.state))
    return entries


def _describe(file: WeightFile) -> str:
    """Return the message for a file without a dict of tensors."""
    content = file.content
    kind = f"a {type(content).__name__}"
    if isinstance(content, Inert):
        kind = "a tensor" if file.find_tensor(content) else f"a {printable(content.function, 80)}"
    elif content == {}:
        kind = "an empty dict"
    elif isinstance(content, dict):
        kind = f"a dict of {list_keys(key for key in content if isinstance(key, str))}"
    return f"{file.name} has no state dict, but {kind}; save the state dict alone: {RESAVE}"
