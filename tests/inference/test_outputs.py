"""Names of result files, for any names of images."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from isanet_zoo.errors import InputError
from isanet_zoo.inference.outputs import plan

STEMS = st.text("aAä\u0308.b ", min_size=1, max_size=4).filter(lambda stem: stem.strip("."))
NAMES = st.lists(st.tuples(STEMS, st.sampled_from([".png", ".JPG", ".labels.png", ""])), min_size=1)
OUT = Path("out")


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
def test_planned_files_are_distinct_and_in_the_folder(names: list[tuple[str, str]]) -> None:
    images = [f"photos/{stem}{suffix}" for stem, suffix in names]
    try:
        planned = plan(images, OUT)
    except InputError:
        assert len({folded(Path(image).stem) for image in images}) < len({*map(Path, images)})
        return
    assert planned.keys() == {Path(image) for image in images}
    files = [file for targets in planned.values() for file in targets]
    assert len({folded(file.name) for file in files}) == len(files)
    assert all(file.parent == OUT for file in files)


def test_stem_is_kept_where_it_is_unique() -> None:
    planned = plan(["x/a.jpg", "y/b.c.png", "..png"], OUT)
    assert [[file.name for file in files] for files in planned.values()] == [
        [f"{stem}.{part}.png" for part in ("labels", "overlay", "confidence")]
        for stem in ("a", "b.c", ".")
    ]


@pytest.mark.parametrize("through", ["same", "link"])
def test_folder_of_the_images_is_refused(through: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").touch()
    (tmp_path / "link").symlink_to(photos)
    with pytest.raises(InputError, match="is the folder of the images"):
        plan([str(photos)], photos if through == "same" else tmp_path / "link")
    assert plan([str(photos)], photos / "out").keys() == {photos / "a.png"}
