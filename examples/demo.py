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
import json
import os
import time
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
.file-preview .download { display: none; }
.shown { position: relative; margin: 0 auto; aspect-ratio: var(--ratio);
         width: min(100%, var(--ratio) * max(16rem, 100svh - var(--others))); --others: 14rem; }
.shown img { position: absolute; width: 100%; height: 100%; }
.shown .colours { opacity: var(--opacity, 50%); }
.shown .labels { display: none; }
.shown output { position: absolute; left: clamp(4em, var(--x), 100% - 4em); top: var(--y);
                transform: translate(-50%, -160%); padding: 0.2em 0.6em; border-radius: 4px;
                background: #000c; color: white; white-space: nowrap; pointer-events: none; }
.shown output:empty { display: none; }
.controls { display: flex; flex-wrap: wrap; gap: 0.2em 1.5em; justify-content: space-between;
            margin-top: 0.5em; }
.controls label { display: flex; gap: 0.5em; }
.tabitem { padding: 0.6rem 0 0 !important; }
.html-container { padding: 0 !important; }
.clicked .shown { cursor: crosshair; }
.example button { width: 6rem; height: 4.5rem; color: transparent; }
@media (max-width: 48rem) { .shown { --others: 27rem; } }
"""
PLACE = """
function place(event, shown) {  // of the pointer, as fractions of width and height
    const box = shown.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}
"""
NAME_CLASSES = """
function nameClass(event) {
    const shown = event.target.closest('.shown');
    if (!shown) return;
    const [x, y] = place(event, shown), [labels, name] = shown.querySelectorAll('.labels, output');
    const canvas = new OffscreenCanvas(1, 1).getContext('2d');
    canvas.drawImage(labels, -Math.floor(x * labels.naturalWidth),
                     -Math.floor(y * labels.naturalHeight));
    const [index] = canvas.getImageData(0, 0, 1, 1).data;
    name.textContent = JSON.parse(shown.dataset.classes)[index];
    name.style.cssText = `--x: ${100 * x}%; --y: ${100 * y}%`;
}
element.addEventListener('pointermove', nameClass);
element.addEventListener('pointerdown', nameClass);
element.addEventListener('pointerleave', ({pointerType}) => {  // a tap leaves at once
    if (pointerType === 'mouse') element.querySelector('output')?.replaceChildren();
});
element.addEventListener('input', ({target}) =>
    element.querySelector('.shown').style.setProperty('--opacity', `${target.value}%`));
"""
EXPLAIN = """
element.addEventListener('click', event => {
    const shown = event.target.closest('.shown');
    if (shown) trigger('click', {point: place(event, shown)});
});
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
        start = time.perf_counter()
        (segmentation,) = predictor.stream([photo])
        seconds = time.perf_counter() - start
    assert segmentation.confidence is not None
    original = segmentation.overlay(alpha=0, legend=False)
    taken = f"{seconds:.2f} s on {predictor.device}, engine {predictor.engine.name}"
    yield (
        compare(segmentation, original, taken),
        show(heat_map(segmentation.confidence)),
        show(original),
        legend(segmentation) + download_link(segmentation, Path(photo).stem),
    )


def explain(photo: str | None, name: str, event: gr.EventData) -> str:
    """Return the attention of a pixel as HTML.

    Args:
        photo: the upload.
        name: of the model.
        event: a click, whose `point` is the pixel as fractions of width and height.
    """
    if photo is None:
        return ""
    with translated_errors(photo):
        image = isanet_zoo.read_image(photo)
        try:
            fractions = [min(max(float(part), 0), 1) for part in event.point]
            sides = zip(fractions, image.size[::-1], strict=True)
            x, y = (min(int(fraction * side), side - 1) for fraction, side in sides)
        except (AttributeError, TypeError, ValueError) as error:  # also of NaN
            raise isanet_zoo.InputError("click a point of the image") from error
        found = prepare(name).explain(image, (x, y))
    figures = (
        f"Entropy {found.entropy:.1f} bits, effective radius {found.effective_radius:.0f} pixels, "
        f"padding {found.padding:.1%}"
    )
    return f"{show(found.overlay())}<p>{figures}</p>"


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


def image_tag(image: Image.Image, kind: str = "jpeg", role: str = "image") -> str:
    """Return an image as HTML, at most as large as `SHOWN`; label maps keep their values."""
    image = image.copy()
    image.thumbnail(SHOWN, Image.Resampling[{"jpeg": "BICUBIC", "png": "NEAREST"}[kind]])
    return f'<img class="{role}" src="{data_url(image, kind)}">'


def show(image: Image.Image, layers: str = "", attributes: str = "") -> str:
    """Return an image below others of its size as HTML, as large as the window permits."""
    style = f"--ratio: {image.width / image.height:.4f}"
    return f'<div class="shown" style="{style}" {attributes}>{image_tag(image)}{layers}</div>'


def compare(segmentation: isanet_zoo.Segmentation, image: Image.Image, taken: str) -> str:
    """Return an image below the colours of its classes as HTML, with a slider for their opacity.

    The browser reads the class under the pointer from a hidden label map.
    """
    label_set = segmentation.label_set
    names = [printable(label_set.short_name(index), 200) for index in range(len(label_set))]
    colours = image_tag(segmentation.to_image(), "png", "colours")
    labels = image_tag(Image.fromarray(segmentation.labels), "png", "labels")
    attributes = f'data-classes="{html.escape(json.dumps(names))}"'
    return (
        show(image, f"{colours}{labels}<output></output>", attributes)
        + '<div class="controls"><label>Opacity <input type="range"></label>'
        + f"<span>{as_text(taken)}</span></div>"
    )


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
    return f'<p><a href="{url}" download="{name}">Download the class map</a></p>'


def describe(name: str) -> str:
    """Return a model's classes, metric and terms as HTML."""
    weights = isanet_zoo.get_weights(name)
    fetched = "" if weights.path().exists() else " They are downloaded on first use."
    return as_text(
        f"{weights.num_classes} classes of {weights.label_set.title}, mIoU {weights.miou:.2f} as "
        f"reported. Weights: {weights.trust}; {weights.licence.weights}.{fetched}"
    )


def example_style() -> str:
    """Return the rule that shows the example's button as a thumbnail."""
    if not STREET.exists():
        return ""
    with Image.open(STREET) as street:
        street.thumbnail((192, 144))
        url = data_url(street, "jpeg")
    return f".example button {{ background: url({url}) center / cover !important; }}"


def refuse_files(request: Request) -> None:
    """Answer requests for files with 404: the page needs none, and uploads are private."""
    if "/file" in request.url.path:
        raise HTTPException(404)


with gr.Blocks(title="ISANet", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
    gr.Markdown("## ISANet demo")
    with gr.Row():
        with gr.Column(scale=5, min_width=240):
            with gr.Row():
                # Files of any kind: the library checks them.
                photo = gr.File(label=f"Image, up to {UPLOAD_MB} MB", height=120, min_width=160)
                if STREET.exists():
                    with gr.Column(elem_classes="example", scale=0, min_width=96):
                        gr.Examples([[str(STREET)]], photo, label="Example")
            name = gr.Dropdown(MODELS, value=BUILT_IN, label="Model")
        with gr.Column(scale=9, min_width=320):
            with gr.Tab("Classes"):
                overlay = gr.HTML(min_height=200, js_on_load=PLACE + NAME_CLASSES)
            with gr.Tab("Confidence"):
                heat = gr.HTML(min_height=200)
                gr.Markdown("Dark: unsure. Bright: sure.")
            with gr.Tab("Attention"):
                attention = gr.HTML(
                    min_height=200, js_on_load=PLACE + EXPLAIN, elem_classes="clicked"
                )
                gr.Markdown("Click a point. Bright: read by the network for this point.")
        with gr.Column(scale=3, min_width=200):
            classes = gr.HTML()
            about = gr.HTML(describe(BUILT_IN))
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
    attention.click(
        explain,
        [photo, name],
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
        css=STYLE + example_style(),
        footer_links=[],
        max_file_size=UPLOAD_MB * 2**20,
        app_kwargs={"dependencies": [Depends(refuse_files)]},
    )


if __name__ == "__main__":
    main()
