"""Images, folders, lists and URLs on the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isanet_zoo.errors import InputError
from isanet_zoo.inference.inputs import check_files, find_inputs


@pytest.fixture
def nested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images in folders; it is the current folder."""
    for name in ("z.png", "a/2.jpg", "a/1.JPG", "a/b/1.png", "c/notes.md", "out/z.png", ".h/h.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(
    *arguments: str, recursive: bool = False, stdin: list[bytes] | None = None
) -> dict[str, str]:
    return find_inputs(arguments, recursive=recursive, out=Path("out"), stdin=stdin or [])


def test_folder_is_searched_itself_or_with_all_folders_below(nested: Path) -> None:
    assert find("a") == {"a/1.JPG": "1.JPG", "a/2.jpg": "2.jpg"}
    assert find(".") == {"./z.png": "z.png"}
    found = {"z.png": "z.png", "a/1.JPG": "a/1.JPG", "a/2.jpg": "a/2.jpg", "a/b/1.png": "a/b/1.png"}
    expected = {str(nested / source): name for source, name in found.items()}
    assert find(str(nested), recursive=True) == expected
    walked = {str(path) for path in nested.rglob("*.[pjPJ][nN]*g")} | {*expected}
    assert walked - {*expected} == {str(nested / "out/z.png"), str(nested / ".h/h.png")}
    assert [*find(str(nested), recursive=True)] == [*expected]  # the order is part of `--shard`


def test_folder_of_the_results_is_refused(nested: Path) -> None:
    for folder in ("out", "./a/../out"):
        with pytest.raises(InputError, match="out is the folder of the images"):
            find(folder)


def test_lists_name_images_and_urls(nested: Path) -> None:
    (nested / "list.txt").write_bytes(b"a/1.JPG\r\n\nhttps://x.test/p/1.png?w=2\n./z.png\n\xff.png")
    odd = os.fsdecode(b"\xff.png")
    url = "https://x.test/p/1.png?w=2"
    assert find("list.txt", "a/1.JPG") == {
        "a/1.JPG": "1.JPG", url: "1.png_w=2", "z.png": "z.png", odd: odd,
    }  # fmt: skip
    assert find("list.txt", recursive=True) == {
        "a/1.JPG": "a/1.JPG", url: "x.test/p/1.png_w=2", "z.png": "z.png", odd: odd,
    }  # fmt: skip
    assert find("-", stdin=[b"z.png\n", b"../a b.png"]) == {
        "z.png": "z.png",
        "../a b.png": "a b.png",
    }
    for stdin in ([], [b"\n"]):
        with pytest.raises(InputError, match="- is empty; write one path or URL per line"):
            find("-", stdin=stdin)
    with pytest.raises(InputError, match=r"no.txt cannot be read: No such file"):
        find("no.txt")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://x.test", "x.test"),
        ("https://u:p@x.test:8/a%20b/%2e%2e/c%2F..%2Fd.png", "x.test/a b/c/d.png"),
        ("HTTPS://X.test//..//a.png?b/c", "x.test/a.png_b_c"),
    ],
)
def test_results_of_urls_stay_in_the_folder(url: str, name: str) -> None:
    assert find(url, recursive=True) == {url: name}
    assert find(url) == {url: name.rpartition("/")[2]}


@pytest.mark.parametrize(("path", "name"), [("/data/x/../a.png", "data/x/a.png"), ("../a", "a")])
def test_recursive_keeps_the_folders_of_paths(path: str, name: str) -> None:
    assert find(path, recursive=True) == {path: name}


def test_wrong_inputs_are_one_error(nested: Path) -> None:
    with pytest.raises(InputError, match="a path is empty"):
        find("z.png", "")
    with pytest.raises(InputError, match="is not a URL: Invalid IPv6"):
        find("https://[1/a.png")


def test_missing_files_are_named(nested: Path) -> None:
    check_files(["z.png", "https://x.test/no.png", "a/2.jpg", "null\0"])
    with pytest.raises(InputError) as caught:
        check_files(["z.png", *(f"{number}.png" for number in range(7))])
    lines = str(caught.value).splitlines()
    assert lines == [
        "7 of the images do not exist:",
        *(f"  {number}.png" for number in range(5)),
        "  and 2 more",
    ]
    with pytest.raises(InputError, match="a is a folder; pass it as an argument"):
        check_files(["a"])


def test_video_shows_how_to_read_its_frames() -> None:
    with pytest.raises(InputError) as caught:
        check_files(["clip's.MP4"])
    code = [line.strip() for line in str(caught.value).splitlines() if line.startswith("    ")]
    assert len(code) == 3
    compile("\n".join(code), "message", "exec")
    assert 'av.open("clip\'s.MP4")' in code[0]
