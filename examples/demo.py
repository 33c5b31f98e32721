"""Demo page: classes, confidence and attention of an uploaded image, on Gradio.

    pip install 'isanet-zoo[demo]'
    python examples/demo.py

As a Gradio Space on Hugging Face, this file is ``app.py`` beside a ``requirements.txt`` that names
``isanet-zoo[demo]``. The page loads nothing from other hosts; weights that are not cached are
downloaded.

Results are sent to the visitor inside the page, as data URLs: the server has no URL for any file.
"""

import base64
import contextlib
import functools
import html
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import Depends, HTTPException, Request
from numpy.typing import NDArray
from PIL import Image

import isanet_zoo
from isanet_zoo.errors import printable

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
MODELS = sorted(isanet_zoo.list_models(), key=lambda name: name != BUILT_IN)  # it comes first
STREET = Path(__file__).with_name("street.jpg")
UPLOAD_MB = 32
MOST_PIXELS = 36_000_000  # of an upload
SHOWN = (1600, 1600)  # largest size of images on the page
WAITING = 20  # visitors in the queue; more get a message
HEAT = ((24, 14, 58), (150, 36, 96), (238, 124, 52), (255, 248, 214))  # unsure to sure
STYLE = """
.legend { width: 100%; border-collapse: separate; border-spacing: 0 3px; }
.legend, .legend tr, .legend td { border: 0 !important; }
.legend td { padding: 0.25em 0.5em; }
.legend td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.legend i { display: inline-block; width: 1em; height: 1em; margin-right: 0.5em;
            border-radius: 3px; vertical-align: -0.1em; }
.file-preview a { visibility: hidden; }
.shown { position: relative; width: fit-content; margin: 0 auto; line-height: 0; --split: 50%; }
.shown img { max-height: 560px; max-width: 100%; }
.shown img + img { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--split)); }
.shown input { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0;
               cursor: ew-resize; }
.shown hr { position: absolute; inset: 0 auto 0 var(--split); margin: 0; height: 100%;
            border: 0; border-left: 2px solid white; pointer-events: none; }
.clicked { cursor: crosshair; }
#point { display: none; }
"""
CLICK = """
const box = this.getBoundingClientRect();
const point = document.querySelector('#point textarea, #point input');
point.value = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
point.dispatchEvent(new Event('input', {bubbles: true}));
"""


@functools.lru_cache(maxsize=2)
def prepare(name: str) -> isanet_zoo.Predictor:
    """Return a model's predictor; the last two stay in memory."""
    return isanet_zoo.Predictor(name, confidence=True)


def segment(
    photo: str | None,
    name: str,
    progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: B008 - Gradio looks for it here
) -> Iterator[tuple[str, str, str, str]]:
    """Yield overlay, confidence, an image to click and a legend as HTML, first empty."""
    yield "", "", "", ""
    if photo is None:
        return
    with translated_errors(photo):
        progress(0, desc=f"Loading {name}")
        predictor = prepare(name)
        progress(0.5, desc="Segmenting")
        (segmentation,) = predictor.stream([photo])
    assert segmentation.confidence is not None
    before, after = (segmentation.overlay(alpha=alpha, legend=False) for alpha in (0, 0.5))
    yield (
        compare(before, after),
        f'<div class="shown">{image_tag(heat_map(segmentation.confidence))}</div>',
        clickable(before),
        legend(segmentation) + download_link(segmentation, Path(photo).stem),
    )


def explain(photo: str | None, name: str, point: str) -> str:
    """Return the attention of a pixel as HTML.

    Args:
        photo: the upload.
        name: of the model.
        point: the pixel, as fractions of width and height, "0.5,0.25".
    """
    if photo is None:
        return ""
    with translated_errors(photo):
        image = isanet_zoo.read_image(photo)
        try:
            fractions = [min(max(float(part), 0), 1) for part in point.split(",")]
            sides = zip(fractions, image.size[::-1], strict=True)
            x, y = (min(int(fraction * side), side - 1) for fraction, side in sides)
        except (TypeError, ValueError) as error:  # also of NaN
            raise isanet_zoo.InputError("click a point of the image") from error
        found = prepare(name).explain(image, (x, y))
    figures = (
        f"Entropy {found.entropy:.1f} bits, effective radius {found.effective_radius:.0f} pixels, "
        f"padding {found.padding:.1%}"
    )
    return f"{clickable(found.overlay())}<p>{figures}</p>"


@contextlib.contextmanager
def translated_errors(photo: str) -> Iterator[None]:
    """Show errors to the visitor, with the file's name but without the server's folder."""
    try:
        yield
    except isanet_zoo.ZooError as error:
        message = as_text(str(error).replace(f"{Path(photo).parent}{os.sep}", ""))
        raise gr.Error(message, duration=None, print_exception=False) from error


def as_text(text: str) -> str:
    """Return text as HTML, without tags or control characters."""
    return html.escape(printable(text, 2000))


def data_url(image: Image.Image, kind: str, **options: Any) -> str:
    """Return an image as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_tag(image: Image.Image) -> str:
    """Return an image as HTML, at most as large as `SHOWN`."""
    image.thumbnail(SHOWN)
    return f'<img src="{data_url(image, "jpeg", quality=90)}">'


def compare(before: Image.Image, after: Image.Image) -> str:
    """Return two images as HTML, divided by a line that follows the pointer."""
    move = "this.parentElement.style.setProperty('--split', this.value + '%')"
    return (
        f'<div class="shown">{image_tag(before)}{image_tag(after)}<hr>'
        f'<input type="range" aria-label="Before and after" oninput="{move}"></div>'
    )


def clickable(image: Image.Image) -> str:
    """Return an image as HTML, whose clicks are sent to `explain`."""
    return f'<div class="shown clicked" onclick="{html.escape(CLICK)}">{image_tag(image)}</div>'


def heat_map(confidence: NDArray[np.float32]) -> Image.Image:
    """Return fractions in 0..1 as colours from dark to bright."""
    image = Image.fromarray((255 * confidence).round().astype(np.uint8))
    stops = np.linspace(0, 255, len(HEAT))
    channels = [np.interp(np.arange(256), stops, channel) for channel in zip(*HEAT, strict=True)]
    image.putpalette(np.stack(channels, axis=1).astype(np.uint8).tobytes())
    return image.convert("RGB")


def legend(segmentation: isanet_zoo.Segmentation) -> str:
    """Return a table of the classes, largest first, with a bar for each fraction."""
    rows = []
    for index, _, fraction in segmentation.present(min_fraction=0.0005):
        colour, percent = segmentation.label_set.palette[index], f"{fraction:.1%}"
        bar = f"linear-gradient(90deg, {colour}40 {percent}, {colour}0c {percent})"
        title = as_text(segmentation.label_set.short_name(index))
        cells = f'<td><i style="background: {colour}"></i>{title}</td><td>{percent}</td>'
        rows.append(f'<tr style="background: {bar}">{cells}</tr>')
    return f'<table class="legend">{"".join(rows)}</table>'


def download_link(segmentation: isanet_zoo.Segmentation, stem: str) -> str:
    """Return a link to the class map, in which a pixel's value is its class."""
    url = data_url(segmentation.to_image(), "png")
    name = as_text(f"{stem}.labels.png")
    return f'<a href="{url}" download="{name}">Download the class map (PNG)</a>'


def describe(name: str) -> str:
    """Return a model's classes, metric and terms as HTML."""
    weights = isanet_zoo.get_weights(name)
    fetched = "" if weights.path().exists() else " They are downloaded on first use."
    return as_text(
        f"{weights.num_classes} classes of {weights.label_set.title}, mIoU {weights.miou:.2f} as "
        f"reported. Weights: {weights.trust}; {weights.licence.weights}.{fetched}"
    )


def refuse_files(request: Request) -> None:
    """Answer requests for files with 404: the page needs none, and uploads are private."""
    if "/file" in request.url.path:
        raise HTTPException(404)


with gr.Blocks(title="ISANet", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
    gr.Markdown("# ISANet\nClasses of an image, pixel by pixel, and the confidence in them.")
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            # Files of any kind: the library checks them.
            photo = gr.File(label=f"Image, up to {UPLOAD_MB} MB", height=120)
            if STREET.exists():
                gr.Examples([[str(STREET)]], photo, label="For example")
            name = gr.Dropdown(MODELS, value=BUILT_IN, label="Model")
            about = gr.HTML(describe(BUILT_IN))
            classes = gr.HTML()
        with gr.Column(scale=2, min_width=480):
            with gr.Tab("Classes"):
                overlay = gr.HTML(min_height=560)
            with gr.Tab("Confidence"):
                gr.Markdown("Dark: unsure. Bright: sure.")
                heat = gr.HTML(min_height=560)
            with gr.Tab("Attention"):
                gr.Markdown("Click a point. Bright: read by the network for this point.")
                attention = gr.HTML(min_height=560)
                point = gr.Textbox(elem_id="point", show_label=False)
    shown = [overlay, heat, attention, classes]
    name.change(describe, name, about, show_progress="hidden")
    changed = [photo.change, name.change]
    # The browser empties the page at once, before the request waits in the queue.
    gr.on(changed, None, None, shown, js="() => ['', '', '', '']")
    gr.on(
        changed,
        segment,
        [photo, name],
        shown,
        show_progress_on=[overlay, heat],
        trigger_mode="always_last",  # a new upload cancels the pending one
        concurrency_limit=1,  # one image at a time; other visitors see their place in the queue
        concurrency_id="network",
    )
    point.change(
        explain,
        [photo, name, point],
        attention,
        trigger_mode="always_last",
        concurrency_id="network",
    )
demo.queue(max_size=WAITING)


def main() -> None:
    """Serve the page, on this machine only unless GRADIO_SERVER_NAME is set."""
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    demo.launch(
        theme=gr.themes.Default(primary_hue="slate", font="system-ui", font_mono="monospace"),
        css=STYLE,
        footer_links=[],
        max_file_size=UPLOAD_MB * 2**20,
        app_kwargs={"dependencies": [Depends(refuse_files)]},
    )


if __name__ == "__main__":
    main()
