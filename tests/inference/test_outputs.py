"""Names of result files, for any names of images; which images are to be segmented."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from isanet_zoo.errors import InputError
from isanet_zoo.inference.outputs import PARTS, Outputs, make_folders, pending, plan

STEMS = st.text("aAä\u0308.b ", min_size=1, max_size=4).filter(lambda stem: stem.strip("."))
FOLDERS = st.sampled_from(["", "x/", "X/", "x/y/"])
SUFFIXES = st.sampled_from([".png", ".JPG", ".labels.png", ""])
NAMES = st.lists(st.tuples(FOLDERS, STEMS, SUFFIXES).map("".join), min_size=1, unique=True)


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@settings(deadline=None)
@given(NAMES)
def test_planned_files_are_distinct_and_in_the_folder(names: list[str]) -> None:
    outputs = Outputs(Path("out"), PARTS)
    try:
        planned = plan({f"/photos/{name}": name for name in names})
    except InputError:
        assert len({folded(str(Path(name).with_suffix(""))) for name in names}) < len(names)
        return
    assert [*planned] == [f"/photos/{name}" for name in names]
    files = [file for name in planned.values() for file in outputs.files(name)]
    assert len({folded(str(file)) for file in files}) == len(files) == 3 * len(names)
    for name, stem in zip(names, planned.values(), strict=True):
        assert outputs.files(stem)[0].parent == Path("out", name).parent


def test_stem_is_kept_where_it_is_unique_in_its_folder() -> None:
    names = ["a.jpg", "b.c.png", "..png", "x/a.png", "x/b.jpg", "x/B.png"]
    assert [*plan({name: name for name in names}).values()] == [
        "a", "b.c", ".", "x/a", "x/b.jpg", "x/B.png",
    ]  # fmt: skip


def touch(outputs: Outputs, name: str, *parts: str) -> None:
    for file in outputs.files(name):
        if not parts or any(f".{part}." in file.name for part in parts):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def test_resume_keeps_images_without_all_results(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path / "out")
    planned = {"a.png": "a", "b.png": "x/b", "c.png": "x/c"}
    assert pending(planned, outputs) == pending(planned, outputs, resume=True) == planned
    touch(outputs, "a")
    touch(outputs, "x/b", "labels")
    assert pending(planned, outputs, resume=True) == {"b.png": "x/b", "c.png": "x/c"}
    assert pending(planned, outputs, overwrite=True) == planned
    labels = Outputs(tmp_path / "out", ("labels",))
    assert pending(planned, labels, resume=True) == {"c.png": "x/c"}
    with pytest.raises(
        InputError, match=r"has results of 2 of these 3 images, such as a\.png; skip"
    ):
        pending(planned, outputs)
    assert pending({"c.png": "x/c"}, outputs) == {"c.png": "x/c"}
    assert pending(planned, Outputs(tmp_path / "out", ())) == planned


def test_result_that_would_replace_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.labels.png").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    images = {str(tmp_path / "b.png"): "b", str(tmp_path / "link" / "b.labels.png"): "b.labels"}
    for option in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(InputError, match=r"b.labels.png, a result of .*b.png, would replace"):
            pending(images, Outputs(tmp_path), **option)
    assert pending(images, Outputs(tmp_path, ("overlay",))) == images


def test_folders_of_results_are_created_or_refused(tmp_path: Path) -> None:
    make_folders({"a.png": "x/y/a", "b.png": "b"}, Outputs(tmp_path / "out"))
    assert (tmp_path / "out" / "x" / "y").is_dir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(InputError, match="file cannot be a folder: File exists"):
        make_folders({"a.png": "file/a"}, Outputs(tmp_path / "out"))
