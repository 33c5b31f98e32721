"""Files of `torch.save`: tensors equal those of `torch.load`, and own their memory."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from isanet_zoo.errors import CheckpointError
from isanet_zoo.weights.containers import open_weights
from isanet_zoo.weights.torch_files import STORAGES


def read(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a flat dict."""
    with open_weights(path, path.name) as file:
        assert isinstance(file.content, dict)
        found = {key: file.find_tensor(value) for key, value in file.content.items()}
        return file.read({key: stored for key, stored in found.items() if stored is not None})


def change(tensor: Tensor, way: str) -> Tensor:
    """Return a view of a tensor, or the tensor as another kind."""
    match way:
        case "transposed":
            return tensor.t()
        case "every other column":
            return tensor[:, ::2]
        case "last row":
            return tensor[-1]
        case "empty":
            return tensor[:0]
        case "parameter":
            return nn.Parameter(tensor, requires_grad=False)
        case "channels last":
            return tensor[:, :, None, None].contiguous(memory_format=torch.channels_last)
        case "scalar":
            return tensor[1, 1]
        case "with attribute":
            tensor = tensor.clone()
            tensor.comment = "hello"  # type: ignore[attr-defined]
    return tensor


WAYS = ["plain", "transposed", "every other column", "last row", "empty", "parameter",
        "channels last", "scalar", "with attribute"]  # fmt: skip


@given(
    tensors=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8),
        st.tuples(st.sampled_from(sorted(STORAGES.values(), key=str)), st.sampled_from(WAYS)),
        max_size=4,
    ),
    as_zip=st.booleans(),
    protocol=st.sampled_from([2, 3, 4]),
)
@settings(max_examples=120, deadline=None)
def test_tensors_equal_those_of_torch_load_and_own_their_memory(
    tensors: dict[str, tuple[torch.dtype, str]], as_zip: bool, protocol: int
) -> None:
    base = {dtype: torch.randint(0, 2, (3, 4)).to(dtype) for dtype, _ in tensors.values()}
    content = {key: change(base[dtype], way) for key, (dtype, way) in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.pth")
        torch.save(
            OrderedDict(content),
            path,
            pickle_protocol=protocol if as_zip else 2,
            _use_new_zipfile_serialization=as_zip,
        )
        expected = torch.load(path, weights_only=True) if protocol == 2 else content
        found = read(path)
    assert list(found) == list(content)
    for key, tensor in found.items():
        assert tensor.dtype == expected[key].dtype
        assert torch.equal(tensor, expected[key])
        assert type(tensor) is Tensor
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    places = [tensor.data_ptr() for tensor in found.values() if tensor.numel()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.uint16),
        torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged),
    ],
)
def test_tensors_that_are_not_dense_numbers_are_not_found(content: Tensor, tmp_path: Path) -> None:
    torch.save({"a": content, "b": torch.zeros(2)}, tmp_path / "x.pth")
    assert list(read(tmp_path / "x.pth")) == ["b"]


def saved(content: object) -> bytes:
    """Return the pickle and the storages that `torch.save` writes, as bytes of the archive."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def rewritten(path: Path, **changes: Any) -> Path:
    """Write the archive of one tensor of four floats, with some entries changed."""
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.arange(4.0)}))) as source:
        entries = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, content in (entries | changes).items():
            if content is not None:
                target.writestr(f"x/{name}", content)
    return path


def test_archive_of_another_program_is_read(tmp_path: Path) -> None:
    found = read(rewritten(tmp_path / "x.pth"))
    assert torch.equal(found["a"], torch.arange(4.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data/0": None}, "a storage is missing or incomplete"),
        ({"data/0": b"1234"}, "a storage is missing or incomplete"),
        ({"data/0": bytes(20)}, "a storage is missing or incomplete"),
        ({"byteorder": b"big"}, "big-endian"),
        ({"data.pkl": None}, "not a checkpoint of torch"),
        ({"y/data.pkl": b"N."}, "not a checkpoint of torch"),
    ],
)
def test_archive_with_other_entries_is_refused(
    changes: dict[str, bytes | None], words: str, tmp_path: Path
) -> None:
    path = rewritten(tmp_path / "x.pth", **changes)
    with pytest.raises(CheckpointError, match=words):
        read(path)


def pickled(shape: str, offset: int, strides: str, size: int = 4) -> bytes:
    """Return the pickle of a dict with one view of a storage of floats."""
    reference = f"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0{0}X\3\0\0\0cpuJ".encode()
    number = size.to_bytes(4, "little", signed=True) + b"tQ"
    at = b"J" + offset.to_bytes(4, "little", signed=True)
    view = at + shape.encode("latin-1") + strides.encode("latin-1") + b"\x89}tR"
    return (
        b"\x80\x02}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n("
        + (reference + number + view)
        + b"s."
    )


HUGE = "\x8a\x08" + "\xff" * 7 + "\x0f"  # an integer of eight bytes


@pytest.mark.parametrize(
    ("shape", "offset", "strides", "size"),
    [
        ("K\5\x85", 0, "K\1\x85", 4),
        ("K\2\x85", 3, "K\1\x85", 4),
        ("K\2\x85", 0, "K\4\x85", 4),
        ("K\1\x85", -1, "K\1\x85", 4),
        ("K\1\x85", 4, "K\1\x85", 4),
        ("K\2\x85", 0, "K\1K\1\x86", 4),
        ("K\0" + HUGE + HUGE + "\x87", 0, "K\1K\1K\1\x87", 4),
        ("K\2\x85", 0, HUGE + "\x85", 4),
        ("J\xff\xff\xff\xff\x85", 0, "K\1\x85", 4),
        ("K\2\x85", 2, "J\xff\xff\xff\xff\x85", 4),
        ("X\1\0\0\0a\x85", 0, "K\1\x85", 4),
        ("K\2\x85", 0, "K\1\x85", 5),
        ("K\2\x85", 0, "K\1\x85", -4),
        ("(" + "K\1" * 99 + "t", 0, "(" + "K\1" * 99 + "t", 4),
    ],
)
def test_view_that_exceeds_its_storage_is_refused(
    shape: str, offset: int, strides: str, size: int, tmp_path: Path
) -> None:
    good = rewritten(tmp_path / "good.pth", **{"data.pkl": pickled("K\2\x85", 2, "K\1\x85")})
    assert torch.equal(read(good)["a"], torch.tensor([2.0, 3.0]))
    content = pickled(shape, offset, strides, size)
    path = rewritten(tmp_path / "x.pth", **{"data.pkl": content})
    with pytest.raises(CheckpointError, match="storage"):
        read(path)


def test_views_of_the_same_bytes_have_a_bounded_size(tmp_path: Path) -> None:
    base = torch.zeros(100_000)
    torch.save({str(n): base.clone() if n < 2 else base for n in range(8)}, tmp_path / "x.pth")
    assert len(read(tmp_path / "x.pth")) == 8
    torch.save({str(n): base for n in range(8)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="views of the same bytes"):
        read(tmp_path / "x.pth")
    torch.save({"a": base[:1].expand(10**12)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="4,000,000,000,000 bytes in all"):
        read(tmp_path / "x.pth")
