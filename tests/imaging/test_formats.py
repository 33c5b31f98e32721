"""Opening of image files: formats, sizes, special files; and listing of folders."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import struct
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.formats import FORMATS, SUFFIXES, list_folder, open_image, stem_key
from isanet_zoo.imaging.reading import read_image
from tests.reference import make_image

RGB = make_image("img100x1000")[:24, :40]  # (24, 40, 3)
PHOTOMETRIC, SAMPLES, PLANAR, SAMPLE_FORMAT = 262, 277, 284, 339  # tags of TIFF
LOSSLESS: dict[str, dict[str, Any]] = {  # format -> options of saving
    "BMP": {},
    "JPEG2000": {"irreversible": False},
    "PNG": {},
    "PPM": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
}
OTHER_FORMATS = ("DDS", "EPS", "ICO", "PCX", "PDF", "SGI", "TGA")
AT_ONCE = 20  # seconds, on a busy machine


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encode_several(kind: str, count: int = 3) -> bytes:
    """Return a file of several images that differ."""
    images = [Image.fromarray(np.roll(RGB, 9 * number, 0)) for number in range(count)]
    return encode(images[0], kind, save_all=True, append_images=images[1:])


def set_tag(content: bytes, tag: int, value: int, form: str = "<HHI") -> bytes:
    """Return a TIFF whose directory has another value of a tag of one short number."""
    entry = struct.pack(form, tag, 3, 1)
    assert content.count(entry) == 1
    start = content.index(entry) + len(entry)
    return content[:start] + struct.pack(form[0] + "H", value) + content[start + 2 :]


def tiff_of_cv2(array: NDArray[Any], *options: int) -> bytes:
    done, content = cv2.imencode(".tif", array, options)
    assert done
    return content.tobytes()


def refusal(source: Any) -> str:
    """Return the message with which an image is refused."""
    with pytest.raises(InputError) as caught:
        read_image(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestFormats:
    def test_suffixes_are_those_of_pillow_for_the_formats(self) -> None:
        registered = Image.registered_extensions()
        kinds = {*FORMATS, "MPO"}  # JPEGs with a preview, which the JPEG reader opens
        assert {suffix for suffix, kind in registered.items() if kind in kinds} - SUFFIXES == {
            ".pfm"  # floating-point values
        }
        assert set(registered) > SUFFIXES

    @pytest.mark.parametrize("kind", LOSSLESS)
    def test_image_of_each_format_is_read(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "image"  # the content decides, not the name
        path.write_bytes(encode(Image.fromarray(RGB), kind, **LOSSLESS[kind]))
        assert np.array_equal(read_image(path).pixels.permute(1, 2, 0), RGB)

    @pytest.mark.parametrize("kind", ["AVIF", "JPEG"])
    def test_image_of_each_lossy_format_is_read(self, kind: str) -> None:
        smooth = np.dstack([np.tile(np.linspace(0, 255, 80).round().astype(np.uint8), (60, 1))] * 3)
        pixels = read_image(encode(Image.fromarray(smooth), kind, quality=95)).pixels
        assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - smooth).max() <= 6

    def test_gif_of_one_image_is_read(self) -> None:
        few = (RGB // 128) * 255
        assert np.array_equal(
            read_image(encode(Image.fromarray(few), "GIF")).pixels.permute(1, 2, 0), few
        )

    @pytest.mark.parametrize("kind", OTHER_FORMATS)
    def test_other_format_is_refused_under_any_name(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(*_: object, **__: object) -> None:
            pytest.fail("Ghostscript was started")

        monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
        path = tmp_path / "photo.png"
        path.write_bytes(encode(Image.fromarray(RGB), kind))
        message = refusal(path)
        assert re.search(r"photo\.png is (not an image file|damaged or of another format)", message)
        assert ", ".join(FORMATS) in message

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"no image at all", "is not an image file"),
            (b"<!DOCTYPE html><html>", "is an HTML page"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "is a git-lfs pointer"),
            (b"\0\0\0\x18ftypheic" + bytes(50), "is damaged or of another format"),
            (b"", "is an empty file"),
        ],
    )
    def test_file_that_is_no_image_is_described(self, content: bytes, reason: str) -> None:
        assert reason in refusal(content)

    def test_missing_decoder_is_no_key_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.init()
        monkeypatch.delitem(Image.OPEN, "AVIF")  # as Pillow below 11.3
        assert read_image(encode(Image.fromarray(RGB), "PNG")).size == (24, 40)
        assert "another format" in refusal(encode(Image.fromarray(RGB), "AVIF"))


class TestSeveralImages:
    @pytest.mark.parametrize("kind", ["AVIF", "GIF", "PNG", "TIFF", "WEBP"])
    def test_file_of_several_images_is_refused_with_the_way_out(
        self, kind: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "several.bin"
        path.write_bytes(encode_several(kind))
        assert "several.bin holds several images; save the one" in refusal(path)

    def test_chosen_image_of_several_is_read_as_a_pil_image(self) -> None:
        with Image.open(io.BytesIO(encode_several("PNG"))) as image:
            image.seek(2)
            assert np.array_equal(read_image(image).pixels.permute(1, 2, 0), np.roll(RGB, 18, 0))

    def test_mpo_is_read_as_its_first_image(self) -> None:
        content = encode_several("MPO", 2)
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "MPO"
            assert np.array_equal(
                read_image(content).pixels.permute(1, 2, 0), np.asarray(image.convert("RGB"))
            )

    def test_planes_written_as_pages_are_refused(self) -> None:
        planes = [Image.fromarray(RGB[:, :, band].copy()) for band in range(3)]
        content = encode(planes[0], "TIFF", save_all=True, append_images=planes[1:])
        assert "holds several images" in refusal(content)

    def test_many_images_are_refused_without_counting(self) -> None:
        pixel = encode(Image.new("L", (1, 1)), "GIF")
        start = pixel.index(b",")  # the image's descriptor
        assert "several images" in refusal(pixel[:start] + pixel[start:-1] * 300_000 + b";")


TIFFS: dict[str, tuple[bytes, str]] = {  # what it is -> (it, part of the message)
    "floats, grey": (tiff_of_cv2(np.ones((9, 8), np.float32)), "floating-point values"),
    "floats, RGB": (
        tiff_of_cv2(np.ones((9, 8, 3), np.float32), cv2.IMWRITE_TIFF_COMPRESSION, 1),
        r"TIFF of 3 bands of 32-bit floating-point values \(rgb\)",
    ),
    "doubles": (tiff_of_cv2(np.ones((9, 8), np.float64)), "TIFF of 1 bands of 64-bit floating"),
    "five bands": (
        set_tag(encode(Image.fromarray(RGB), "TIFF"), SAMPLES, 5),
        "TIFF of 5 bands of 8-bit unsigned values",
    ),
    "three bands marked as grey": (
        set_tag(encode(Image.fromarray(RGB), "TIFF"), PHOTOMETRIC, 1),
        r"TIFF of 3 bands of 8-bit unsigned values \(minisblack\); save it as grey or RGB",
    ),
    "the same, with wide offsets": (
        set_tag(encode(Image.fromarray(RGB), "TIFF", big_tiff=True), PHOTOMETRIC, 1, "<HHQ"),
        r"TIFF of 3 bands of 8-bit unsigned values \(minisblack\)",
    ),
    "16 bits, RGB": (tiff_of_cv2(RGB.astype(np.uint16)), r"more than 8 bits.*x / 257"),
    "16 bits, plane by plane": (
        set_tag(tiff_of_cv2(RGB.astype(np.uint16), cv2.IMWRITE_TIFF_COMPRESSION, 1), PLANAR, 2),
        "more than 8 bits",
    ),
    "32-bit integers": (
        encode(Image.fromarray(RGB[:, :, 0].astype(np.int32)), "TIFF"),
        "signed or floating-point",
    ),
    "signed bytes": (tiff_of_cv2(RGB[:, :, 0].astype(np.int8)), "signed or floating-point"),
    "cut": (encode(Image.fromarray(RGB), "TIFF")[:60], "damaged"),
}


class TestTiff:
    @pytest.mark.parametrize("name", TIFFS)
    def test_tiff_that_cannot_be_used_is_described(self, name: str) -> None:
        content, reason = TIFFS[name]
        message = refusal(content)
        assert re.search(reason, message), message
        assert "not an image" not in message
        assert ("/ 257" in message) == ("more than 8 bits" in message)


class TestSizes:
    @pytest.mark.filterwarnings("ignore:Image size")  # Pillow's, up to twice its bound
    @pytest.mark.parametrize("kind", [*LOSSLESS, "AVIF", "GIF", "JPEG"])
    @pytest.mark.parametrize("limit", [RGB[:, :, 0].size - 1, RGB[:, :, 0].size // 3])
    def test_image_above_pillows_bound_is_refused_before_decoding(
        self, kind: str, limit: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = encode(Image.fromarray(RGB), kind)
        Image.init()  # a plugin of Pillow 11 creates an image when it is imported
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("was decoded"))
        assert re.search(r"is too large .*MAX_IMAGE_PIXELS", refusal(content))

    def test_image_at_pillows_bound_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB[:, :, 0].size)
        assert read_image(encode(Image.fromarray(RGB), "PNG")).size == (24, 40)

    def test_bound_that_is_switched_off_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        content = encode(Image.fromarray(RGB), "PNG")
        assert read_image(content).size == read_image(io.BytesIO(content)).size == (24, 40)

    def test_file_too_large_for_any_image_is_refused_unread(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("was opened"))
        path = tmp_path / "sparse.tif"
        with path.open("wb") as file:
            file.write(b"II*\0")
            file.truncate(20 << 30)
        assert "sparse.tif is too large (21474836480 bytes)" in refusal(path)
        with path.open("rb") as file:
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
            assert "is too large (16001 bytes)" in refusal(file)

    def test_jpeg_of_many_scans_is_refused_before_decoding(self) -> None:
        content = encode(Image.fromarray(RGB), "JPEG", progressive=True)
        assert read_image(content).size == (24, 40)
        last_scan = content[content.rindex(b"\xff\xda") : -2]
        slow = content[:-2] + 200 * last_scan + content[-2:]
        assert re.search(r"has 2\d\d scans, more than 100", refusal(slow))

    def test_masks_share_the_reader(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "mask.png"
        path.write_bytes(encode(Image.fromarray(RGB[:, :, 0].copy()), "PNG"))
        with open_image(path) as (image, name):
            assert (image.mode, name) == ("L", str(path))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
        with pytest.raises(InputError, match="is too large"), open_image(path):
            pass


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {  # name -> how to make it, message
    "pipe.png": (os.mkfifo, "not a regular file"),
    "socket.png": (make_socket, "cannot be read"),
    "zero.png": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "tty.png": (lambda path: path.symlink_to("/dev/tty"), "cannot be read"),
    "loop.png": (lambda path: path.symlink_to(path), "symbolic links"),
    "nowhere.png": (lambda path: path.symlink_to(path.with_name("none")), "no such file"),
    "folder.png": (lambda path: path.mkdir(), "is a folder; pass it alone"),
    "x" * 300: (lambda _: None, "File name too long"),
    "x" * 5000: (lambda _: None, "File name too long"),
    "null\0.png": (lambda _: None, "null"),
    "missing.png": (lambda _: None, "there is no such file"),
    "\udcff\ud800.png": (lambda _: None, "not a file name|no such file"),
}


@settings(deadline=None)
@given(st.sampled_from([*LOSSLESS, "AVIF", "GIF", "JPEG"]), st.data())
def test_damaged_file_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    content = bytearray(encode(Image.fromarray(RGB), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        image = read_image(bytes(content))
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert image.pixels.shape == (3, *image.size)
        assert image.pixels.dtype == torch.uint8


class TestPaths:
    @pytest.mark.parametrize("name", SPECIAL, ids=lambda name: ascii(name[:20]))
    def test_special_file_is_refused_at_once(self, name: str, tmp_path: Path) -> None:
        make, reason = SPECIAL[name]
        path = tmp_path / name
        make(path)
        messages: list[str] = []
        thread = threading.Thread(target=lambda: messages.append(refusal(path)), daemon=True)
        thread.start()
        thread.join(AT_ONCE)
        assert messages, "no answer"
        assert re.search(reason, messages[0])
        assert messages[0].isprintable()

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("", "an empty path"),
            ("~nosuchuser/cat.jpg", "no such file"),
            ("https://images.invalid/cat.jpg", "is a URL; download the image first"),
            (Path("https://images.invalid/cat.jpg"), "is a URL; download the image first"),
            ("s3://bucket/cat.jpg", "is a URL"),
            ("file:///a%00b.png", "is a URL"),
            ("data:image/png;base64," + "A" * 9000, "is a URL"),
            (b"/data/cat.jpg", "not its path"),
        ],
    )
    def test_path_that_is_none_is_explained(self, path: Any, reason: str) -> None:
        assert reason in refusal(path)

    def test_folder_entry_of_bytes_is_a_path(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(encode(Image.fromarray(RGB), "PNG"))
        with os.scandir(os.fsencode(tmp_path)) as entries:
            (entry,) = entries
        assert read_image(entry).path == tmp_path / "a.png"  # type: ignore[arg-type]


class TestListFolder:
    def test_folder_lists_every_supported_suffix_by_name(self, tmp_path: Path) -> None:
        names = sorted(f"{number}{suffix}" for number, suffix in enumerate(SUFFIXES))
        for name in (*names, "B.JPG", "a.Png"):
            (tmp_path / name).touch()
        assert [path.name for path in list_folder(tmp_path)] == [*names, "B.JPG", "a.Png"]

    def test_other_files_and_subfolders_are_counted_in_one_record(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("a.png", "b.txt", "c", "d.heic", "._a.png", ".DS_Store", ".hidden.jpg"):
            (tmp_path / name).touch()
        for name in ("album.png", "more", ".git"):
            (tmp_path / name).mkdir()
        (tmp_path / "more" / "below.png").touch()
        with caplog.at_level(logging.WARNING, "isanet_zoo"):
            assert list_folder(tmp_path) == [tmp_path / "a.png"]
        (record,) = caplog.records
        assert record.getMessage() == (
            f"{tmp_path}: 1 images; 3 other files are skipped, 2 subfolders are not searched"
        )

    def test_folder_of_images_alone_logs_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "a.png").touch()
        (tmp_path / "._a.png").touch()
        list_folder(tmp_path)
        assert caplog.records == []

    def test_special_files_are_listed_so_that_they_are_reported(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "broken.png").symlink_to("nowhere")
        assert [path.name for path in list_folder(tmp_path)] == ["broken.png", "pipe.png"]

    def test_folder_without_images_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").touch()
        (tmp_path / "images").mkdir()
        with pytest.raises(InputError, match=r"contains no images; 1 other.*1 subfolders.*\.png"):
            list_folder(tmp_path)

    def test_folder_that_cannot_be_listed_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="gone cannot be read: No such file"):
            list_folder(tmp_path / "gone")


def test_stem_key_is_equal_for_both_forms_of_a_name() -> None:
    composed, decomposed = (unicodedata.normalize(form, "Zürich") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert stem_key(Path(f"x/{decomposed}.png")) == stem_key(Path(f"{composed}.jpg")) == composed


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM"])
def test_file_of_too_many_bytes_for_its_pixels_is_refused(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    padded = file.getvalue() + b"\xff" * (17 << 20)
    with pytest.raises(InputError, match=r"has \d+ bytes for 8 x 8 pixels; save it anew"):
        read_image(padded)
    assert read_image(padded[: 16 << 20]).size == (8, 8)


@pytest.mark.parametrize(("order", "head"), [("<", b"II*\0"), (">", b"MM\0*")])
def test_tiff_with_too_many_tags_is_refused_without_warnings(
    order: str, head: bytes, tmp_path: Path
) -> None:
    tags = b"".join(struct.pack(f"{order}HHII", i, 1, 0x7FFFFFFF, 0) for i in range(60_000))
    path = tmp_path / "many.tif"
    path.write_bytes(head + struct.pack(f"{order}IH", 8, 60_000) + tags)
    with pytest.raises(InputError, match="has 60000 TIFF tags, more than 500"):
        read_image(path)
