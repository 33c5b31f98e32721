"""Run of `examples/video.py`, and of the lines in the error about a video."""

from __future__ import annotations

import runpy
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import isanet_zoo
from isanet_zoo import InputError

av = pytest.importorskip("av")

EXAMPLES = Path(isanet_zoo.__file__).parents[1] / "examples"
pytestmark = pytest.mark.usefixtures("small_inputs")

TIMES = (0, 40, 95, 300, 340)  # milliseconds: the frame rate varies
SIZE = (161, 120)  # an odd width, which H.264 does not support in most players


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A lossless clip of five parts of the street, turned by its metadata."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as writer, Image.open(EXAMPLES / "street.jpg") as photo:
        stream = writer.add_stream("libx264rgb", 25, {"qp": "0"})
        stream.width, stream.height = SIZE
        stream.pix_fmt = "rgb24"
        stream.set_display_rotation(90)  # as phones do
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(TIMES):
            left = 60 * number
            frame = av.VideoFrame.from_image(photo.crop((left, 250, left + SIZE[0], 370)))
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())
    return path


def frames_of(path: Path) -> tuple[list[float], list[Image.Image]]:
    with av.open(str(path)) as reader:
        frames = [*reader.decode(video=0)]
    images = [frame.to_image().rotate(frame.rotation, expand=True) for frame in frames]
    return [frame.time for frame in frames], images


def test_video_of_overlays_has_the_times_of_its_frames(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "overlays.mp4"
    monkeypatch.setattr(sys, "argv", ["video.py", str(clip), str(target)])
    runpy.run_path(str(EXAMPLES / "video.py"), run_name="__main__")
    assert capsys.readouterr().err.endswith("5 of 5 frames")
    before, images = frames_of(clip)
    after, overlays = frames_of(target)
    assert before == [time / 1000 for time in TIMES]
    assert after == before
    predictor = isanet_zoo.Predictor("isanet_efficientnet_lite0os8_camvid")
    for image, overlay, segmentation in zip(
        images, overlays, predictor.stream(images), strict=True
    ):
        assert (image.size, overlay.size) == ((120, 161), (120, 162))
        expected = np.asarray(segmentation.overlay(image, legend=False), float)
        difference = np.abs(np.asarray(overlay, float)[:161] - expected)
        assert difference.mean() < 6  # of 255; the video is compressed


def test_lines_of_the_error_about_a_video_read_its_frames(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = isanet_zoo.Predictor("isanet_efficientnet_lite0os8_camvid")
    with pytest.raises(InputError, match="is a video; predict its frames") as caught:
        predictor(clip)
    code = [line.strip() for line in str(caught.value).splitlines() if line.startswith("    ")]
    names = {"av": av, "isanet_zoo": isanet_zoo}
    exec("\n".join(code), names)
    assert len([*names["results"]]) == 5
