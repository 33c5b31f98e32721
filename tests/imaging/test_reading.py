"""Images of any kind, against arrays that are transposed by hand and against cv2's decoders."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.reading import LoadedImage, find_images, is_single, read_image
from tests.reference import DATA, make_image

Pixels = NDArray[np.uint8]
ORIENTATION = 0x0112  # the tag's number in EXIF

RGB = make_image("img100x1000")[:24, :40]  # (24, 40, 3)
GREY = RGB[:, :, 0]
ALPHA = RGB[:, :, 1]
PALETTE = make_image("img375x500")[0, :256]  # (256, 3)

UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {  # EXIF orientation -> transposition
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


def pixels_of(image: Any) -> Pixels:
    """Read an image and return its pixels channels last, (H, W, 3)."""
    pixels = read_image(image).pixels
    assert pixels.dtype == torch.uint8
    return pixels.permute(1, 2, 0).numpy()


def decoded_by_cv2(path: Path) -> Any:
    bgr = cv2.imread(str(path))
    assert bgr is not None
    return bgr[:, :, ::-1]


def with_palette(transparency: object = None) -> Image.Image:
    image = Image.fromarray(GREY)
    image.putpalette(PALETTE.tobytes())
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def grey(levels: Pixels) -> Pixels:
    return np.dstack([levels] * 3)


MODES: dict[str, tuple[Image.Image, Pixels]] = {  # name -> (image, its colours)
    "RGB": (Image.fromarray(RGB), RGB),
    "RGBA": (Image.fromarray(np.dstack([RGB, ALPHA])), RGB),
    "L": (Image.fromarray(GREY), grey(GREY)),
    "LA": (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), grey(GREY)),
    "P": (with_palette(), PALETTE[GREY]),
    "P, one index transparent": (with_palette(7), PALETTE[GREY]),
    "P, alpha per index": (with_palette(bytes(range(256))), PALETTE[GREY]),
    "1": (Image.fromarray(GREY > 127), grey(np.where(GREY > 127, 255, 0).astype(np.uint8))),
}


def test_orientation_is_applied_despite_broken_exif(tmp_path: Path) -> None:
    entries = struct.pack("<HHLL", 0x010E, 5, 1, 38)  # a description that is a fraction
    entries += struct.pack("<HHLHH", ORIENTATION, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + entries + struct.pack("<LLL", 0, 1, 2)
    Image.fromarray(RGB).save(tmp_path / "odd.jpg", exif=exif)
    assert read_image(tmp_path / "odd.jpg").size == (40, 24)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_of_exif_is_applied(orientation: int, tmp_path: Path) -> None:
    plain, rotated = tmp_path / "plain.jpg", tmp_path / "rotated.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(RGB).save(plain)
    Image.fromarray(RGB).save(rotated, exif=exif)
    expected = UPRIGHT[orientation](np.asarray(Image.open(plain)))
    assert np.array_equal(pixels_of(rotated), expected)
    assert np.array_equal(decoded_by_cv2(rotated), expected)


@pytest.mark.parametrize("mode", MODES)
def test_png_of_each_mode_becomes_rgb_without_alpha(mode: str, tmp_path: Path) -> None:
    image, colours = MODES[mode]
    path = tmp_path / "image.png"
    image.save(path)
    assert np.array_equal(pixels_of(path), colours)
    assert np.array_equal(pixels_of(image), colours)


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    inks = np.array(
        [[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255]], np.uint8
    )
    colours = [(255, 255, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]
    flat = inks[None].repeat(16, 0).repeat(16, 1)  # (16, 80, 4): one block per ink
    bands = [Image.fromarray(np.ascontiguousarray(flat[:, :, band])) for band in range(4)]
    path = tmp_path / "print.jpg"
    Image.merge("CMYK", bands).save(path, quality=95)
    centres = pixels_of(path)[8, 8::16].astype(int)
    assert np.abs(centres - colours).max() <= 3


def test_bitmap_of_565_bits_is_read(tmp_path: Path) -> None:
    pixels = struct.pack("<4H", 0xF800, 0x07E0, 0x001F, 0xFFFF)  # 2 x 2, the bottom row first
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    start = 14 + len(header) + len(masks)
    path = tmp_path / "old.bmp"
    path.write_bytes(
        b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + masks + pixels
    )
    blue, white, red, green = (0, 0, 255), (255, 255, 255), (255, 0, 0), (0, 255, 0)
    assert pixels_of(path).tolist() == [[[*blue], [*white]], [[*red], [*green]]]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
def test_photograph_is_decoded_as_by_cv2(suffix: str, tmp_path: Path) -> None:
    photograph = DATA / "images" / "home.jpg"
    path = tmp_path / f"copy{suffix}"
    path.write_bytes(photograph.read_bytes())
    if suffix != ".jpg":
        Image.open(photograph).save(path)
    assert np.array_equal(pixels_of(path), decoded_by_cv2(path))


def frozen(array: Pixels) -> Pixels:
    array = array.copy()
    array.flags.writeable = False
    return array


ARRAYS: dict[str, tuple[object, Pixels]] = {  # name -> (image, its colours)
    "rgb": (RGB.copy(), RGB),
    "rgba": (np.dstack([RGB, ALPHA]), RGB),
    "grey": (GREY.copy(), grey(GREY)),
    "grey with an axis for it": (GREY[:, :, None], grey(GREY)),
    "read-only": (frozen(RGB), RGB),
    "read-only grey": (frozen(GREY), grey(GREY)),
    "read-only planes": (frozen(RGB.transpose(2, 0, 1)).transpose(1, 2, 0), RGB),
    "every other pixel": (RGB[::2, ::2], RGB[::2, ::2]),
    "mirrored": (RGB[:, ::-1], RGB[:, ::-1]),
    "BGR, reversed": (RGB[:, :, ::-1].copy()[:, :, ::-1], RGB),
    "flipped row": (RGB[:1].transpose(2, 0, 1).copy().transpose(1, 2, 0)[::-1], RGB[:1]),
    "one pixel": (GREY[:1, :1], grey(GREY[:1, :1])),
    "tensor": (torch.from_numpy(RGB.transpose(2, 0, 1).copy()), RGB),
    "tensor, channels last": (torch.from_numpy(RGB.copy()).permute(2, 0, 1), RGB),
    "grey tensor": (torch.from_numpy(GREY.copy()).expand(3, -1, -1), grey(GREY)),
    "PIL": (Image.fromarray(RGB), RGB),
    "LoadedImage": (LoadedImage(torch.from_numpy(RGB.transpose(2, 0, 1).copy())), RGB),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_array_or_tensor_keeps_its_colours(name: str) -> None:
    image, colours = ARRAYS[name]
    assert np.array_equal(pixels_of(image), colours)
    assert read_image(image).size == colours.shape[:2]  # type: ignore[arg-type]


def test_path_of_the_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(RGB).save(path)
    assert read_image(str(path)).path == path
    assert read_image(RGB).path is None


def first_half(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()[: buffer.tell() // 2]


UNUSABLE: dict[str, tuple[object, str]] = {  # what it is -> (it, part of the message)
    "float array": (RGB / 255, r"float64.*uint8.*x \* 255"),
    "array with NaN": (np.full((4, 5, 3), np.nan), "float64.*uint8"),
    "bool array": (GREY > 9, "bool.*uint8"),
    "16-bit array": (RGB.astype(np.uint16), "uint16.*uint8"),
    "array of text": (np.array(["a"]), "expected uint8"),
    "channels first": (RGB.transpose(2, 0, 1), r"\(3, 24, 40\).*transpose"),
    "batch of arrays": (RGB[None], r"\(1, 24, 40, 3\).*list"),
    "empty array": (RGB[:0], r"\(0, 40, 3\)"),
    "array of nothing": (np.zeros((), np.uint8), r"shape \(\)"),
    "row": (RGB[0, :, 0], r"\(40,\)"),
    "float tensor": (torch.zeros(3, 4, 5), "float32.*uint8"),
    "grey tensor": (torch.zeros(4, 5, dtype=torch.uint8), r"\(4, 5\).*expand"),
    "channels-last tensor": (torch.zeros(4, 5, 3, dtype=torch.uint8), r"\(4, 5, 3\).*permute"),
    "batch of tensors": (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), r"\(2, 3, 4, 5\).*list"),
    "meta tensor": (torch.zeros(3, 4, 5, dtype=torch.uint8, device="meta"), "meta device"),
    "sparse tensor": (torch.zeros(3, 4, 5, dtype=torch.uint8).to_sparse(), "sparse_coo.*dense"),
    "empty tensor": (torch.zeros(3, 0, 5, dtype=torch.uint8), r"\(3, 0, 5\)"),
    "16-bit PIL image": (Image.fromarray(GREY.astype(np.uint16)), "I;16.*more than 8 bits"),
    "float PIL image": (Image.fromarray(GREY.astype(np.float32)), "mode F.*floating-point"),
    "int": (7, "got int; pass a path"),
    "None": (None, "got NoneType; pass a path"),
    "list": ([RGB], "got list"),
    "empty bytes": (b"", "is an empty file"),
    "text file": (io.StringIO("text"), r"opened as text; use open\(path, 'rb'\)"),
    "bytes that are no image": (b"what is this", "not an image file"),
}


def test_pil_image_is_left_as_it_is() -> None:
    image = Image.fromarray(RGB)
    image.getexif()[ORIENTATION] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=image.getexif())
    with Image.open(buffer) as image:
        for _ in range(2):
            assert read_image(image).size == (40, 24)
        assert image.size == (40, 24)
        assert image.getexif()[ORIENTATION] == 6


class TestRefusals:
    @pytest.mark.parametrize("name", UNUSABLE)
    def test_object_that_cannot_be_used_is_described(self, name: str) -> None:
        image, reason = UNUSABLE[name]
        with pytest.raises(InputError, match=reason) as caught:
            read_image(image)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert ("/ 257" in str(caught.value)) == (name == "16-bit PIL image")

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"])
    def test_truncated_file_is_damaged(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "cut.bin"
        path.write_bytes(first_half(Image.fromarray(RGB), kind))
        with pytest.raises(InputError, match=r"cut\.bin is damaged"):
            read_image(path)

    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_png_of_16_bits_is_refused(self, channels: int, tmp_path: Path) -> None:
        path = tmp_path / "deep.png"
        cv2.imwrite(str(path), np.dstack([RGB, ALPHA])[:, :, :channels].astype(np.uint16))
        with pytest.raises(InputError, match=r"deep\.png has more than 8 bits.*x / 257"):
            read_image(path)
        with Image.open(path) as image, pytest.raises(InputError, match="more than 8 bits"):
            read_image(image)

    @pytest.mark.parametrize("kind", ["P5", "P6"])
    def test_ppm_of_16_bits_is_refused(self, kind: str) -> None:
        content = f"{kind} 2 1 65535\n".encode() + bytes(12)
        with pytest.raises(InputError, match="more than 8 bits"):
            read_image(content)

    def test_pil_image_that_is_truncated_is_damaged(self) -> None:
        cut = io.BytesIO(first_half(Image.fromarray(RGB), "JPEG"))
        with Image.open(cut) as image, pytest.raises(InputError, match="damaged"):
            read_image(image)


class TestOpenFiles:
    @pytest.fixture
    def content(self) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(RGB).save(buffer, "PNG")
        return buffer.getvalue()

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
    def test_content_of_a_file_is_decoded(
        self, kind: Callable[[bytes], Any], content: bytes
    ) -> None:
        assert is_single(kind(content))
        assert np.array_equal(pixels_of(kind(content)), RGB)
        assert read_image(kind(content)).path is None

    def test_open_file_is_read_from_its_start(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "image.png"
        path.write_bytes(content)
        with path.open("rb") as file:
            file.seek(9)
            for _ in range(2):
                assert np.array_equal(pixels_of(file), RGB)

    def test_pipe_is_read_to_its_end(self, content: bytes) -> None:
        reader, writer = os.pipe()
        with open(reader, "rb") as source, open(writer, "wb") as target:  # noqa: PTH123
            target.write(content)
            target.close()
            assert np.array_equal(pixels_of(source), RGB)

    def test_file_opened_as_text_is_refused(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "image.png"
        path.write_bytes(content)
        with path.open() as file, pytest.raises(InputError, match=r"image\.png is opened as text"):
            read_image(file)  # type: ignore[arg-type]

    def test_one_object_read_in_many_threads_keeps_its_pixels(self) -> None:
        large = np.tile(RGB, (25, 20, 1))
        for _ in range(5):
            buffer = io.BytesIO()
            Image.fromarray(large).save(buffer, "PNG")
            for source in (Image.open(buffer), buffer):
                with ThreadPoolExecutor(8) as pool:
                    for found in pool.map(pixels_of, [source] * 8):
                        assert np.array_equal(found, large)


def test_reading_in_two_threads_leaves_the_warning_filters_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(RGB).save(path)
    both_are_in, first_is_done = threading.Event(), threading.Event()
    names = threading.local()
    real_open = Image.open

    def staggered_open(*arguments: Any, **options: Any) -> Image.Image:
        if names.own == "second":
            both_are_in.set()
        (both_are_in if names.own == "first" else first_is_done).wait(10)
        return real_open(*arguments, **options)

    def read(name: str) -> None:
        names.own = name
        read_image(path)

    monkeypatch.setattr(Image, "open", staggered_open)
    first, second = (threading.Thread(target=read, args=(name,)) for name in ("first", "second"))
    with warnings.catch_warnings():  # restores a leaked filter after the test
        before = list(warnings.filters)
        first.start()
        second.start()
        first.join()
        first_is_done.set()
        second.join()
        assert list(warnings.filters) == before


class TestFindImages:
    def test_folder_yields_its_images_by_name(self, tmp_path: Path) -> None:
        for name in ("b.PNG", "a.jpg", "c.txt", "e.Tiff"):
            (tmp_path / name).touch()
        expected = [tmp_path / name for name in ("a.jpg", "b.PNG", "e.Tiff")]
        assert list(find_images(tmp_path)) == list(find_images(str(tmp_path))) == expected

    def test_generator_is_consumed_lazily(self) -> None:
        read = []

        def frames() -> Iterator[Pixels]:
            for number in range(3):
                read.append(number)
                yield RGB

        images = iter(find_images(frames()))
        assert read == []
        next(images)
        assert read == [0]

    @pytest.mark.parametrize("images", [7, None, 0.5])
    def test_object_without_images_is_refused(self, images: Any) -> None:
        with pytest.raises(InputError, match=f"expected images, got {type(images).__name__}; pass"):
            find_images(images)

    def test_single_images_are_told_from_several(self, tmp_path: Path) -> None:
        one = [tmp_path / "a.png", "a.png", RGB, torch.zeros(3, 4, 5), Image.new("L", (1, 1))]
        one += ["", b"bytes", io.BytesIO(), "x" * 5000, "a\0b", "https://images.invalid/cat.jpg"]
        several = [tmp_path, str(tmp_path), [RGB], (RGB,), iter([RGB])]
        assert [is_single(images) for images in one] == [True] * len(one)
        assert [is_single(images) for images in several] == [False] * len(several)

    def test_empty_path_is_not_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Image.fromarray(RGB).save(tmp_path / "a.png")
        monkeypatch.chdir(tmp_path)
        assert list(find_images("")) == [""]
        with pytest.raises(InputError, match="an empty path"):
            read_image("")
