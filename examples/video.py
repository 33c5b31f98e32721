"""Segment the frames of a video into a video of their overlays.

    pip install av
    python examples/video.py CLIP.mp4 OVERLAYS.mp4 [MODEL]

Each overlay has the time of its frame, also where the frame rate varies. The video is H.264 without
sound. A few frames are in memory at any time.
"""

import itertools
import sys

import av

import isanet_zoo


def main(source: str, target: str, name: str = "isanet_efficientnet_lite0os8_camvid") -> None:
    """Write the overlays of a video."""
    predictor = isanet_zoo.Predictor(name)
    with av.open(source) as reader, av.open(target, "w") as writer:
        video = reader.streams.video[0]
        upright = (  # phones store the rotation beside the frames
            (frame, frame.to_image().rotate(frame.rotation, expand=True))
            for frame in reader.decode(video)
        )
        frames, again = itertools.tee(upright)
        results = predictor.stream(image for _, image in again)
        stream = None
        for number, ((frame, image), result) in enumerate(zip(frames, results, strict=True), 1):
            if stream is None:
                stream = writer.add_stream("libx264", video.average_rate, {"crf": "20"})
                stream.width, stream.height = (side + side % 2 for side in image.size)  # even
                stream.pix_fmt = "yuv420p"  # which every player supports
                stream.codec_context.time_base = video.time_base
            overlay = result.overlay(image, legend=False)  # classes would change places in it
            coded = av.VideoFrame.from_image(overlay.crop((0, 0, stream.width, stream.height)))
            coded.pts, coded.time_base = frame.pts, frame.time_base
            writer.mux(stream.encode(coded))
            print(f"\r{number} of {video.frames or '?'} frames", end="", file=sys.stderr)
        if stream is not None:
            writer.mux(stream.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
