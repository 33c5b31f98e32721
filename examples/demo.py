"""A page that segments a picture: what is in it, where, and how sure the model is.

    pip install 'isanet-zoo[demo]'
    python examples/demo.py

As a Gradio Space on Hugging Face, this file is ``app.py`` beside a ``requirements.txt`` that names
``isanet-zoo[demo]``. The page itself needs no network; weights that are not cached do.
"""

import functools
import html
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import isanet_zoo

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
MODELS = sorted(isanet_zoo.list_models(), key=lambda name: name != BUILT_IN)  # it comes first
STREET = Path(__file__).with_name("street.jpg")
HEAT = ((24, 14, 58), (150, 36, 96), (238, 124, 52), (255, 248, 214))  # unsure to sure
NOTHING = (None, None, "", gr.update(value=None, interactive=False))  # what is shown of no picture
STYLE = """
.legend { width: 100%; border-collapse: separate; border-spacing: 0 3px; }
.legend, .legend tr, .legend td { border: 0 !important; }
.legend td { padding: 0.25em 0.5em; }
.legend td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.legend i { display: inline-block; width: 1em; height: 1em; margin-right: 0.5em;
            border-radius: 3px; vertical-align: -0.1em; }
"""


@functools.lru_cache(maxsize=2)
def prepare(name: str) -> isanet_zoo.Predictor:
    """Return a model that is ready; the two that were used last stay in memory."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return isanet_zoo.Predictor(name, confidence=True, device=device)


def segment(
    photo: str | None,
    name: str,
    progress: gr.Progress = gr.Progress(track_tqdm=True),  # noqa: B008 - Gradio looks for it here
) -> Iterator[tuple[Any, ...]]:
    """Give what the page shows of a photograph: overlay, confidence, legend and class map."""
    yield NOTHING
    if photo is None:
        return
    try:
        progress(0, desc=f"Loading {name}")
        predictor = prepare(name)
        progress(0.5, desc="Segmenting")
        (segmentation,) = predictor.stream([photo])
    except isanet_zoo.ZooError as error:
        # Visitors know the file by its name, not by the folder that Gradio put it into.
        message = html.escape(str(error).replace(f"{Path(photo).parent}{os.sep}", ""))
        raise gr.Error(message, duration=None, print_exception=False) from error
    assert segmentation.confidence is not None
    with tempfile.TemporaryDirectory() as folder:  # Gradio copies what it is given
        class_map = Path(folder) / f"{Path(photo).stem}.labels.png"
        segmentation.save(class_map)
        yield (
            (segmentation.overlay(alpha=0, legend=False), segmentation.overlay(legend=False)),
            heat_map(segmentation.confidence),
            legend(segmentation),
            gr.update(value=class_map, interactive=True),
        )


def heat_map(confidence: NDArray[np.float32]) -> Image.Image:
    """Draw shares in 0..1 from dark to bright."""
    image = Image.fromarray((255 * confidence).round().astype(np.uint8))
    stops = np.linspace(0, 255, len(HEAT))
    channels = [np.interp(np.arange(256), stops, channel) for channel in zip(*HEAT, strict=True)]
    image.putpalette(np.stack(channels, axis=1).astype(np.uint8).tobytes())
    return image.convert("RGB")


def legend(segmentation: isanet_zoo.Segmentation) -> str:
    """Return a table of the classes, largest first; a row is filled as far as its share goes."""
    rows = []
    for index, _, fraction in segmentation.present(min_fraction=0.0005):
        colour, share = segmentation.label_set.palette[index], f"{fraction:.1%}"
        bar = f"linear-gradient(90deg, {colour}40 {share}, {colour}0c {share})"
        title = html.escape(segmentation.label_set.short_name(index))
        cells = f'<td><i style="background: {colour}"></i>{title}</td><td>{share}</td>'
        rows.append(f'<tr style="background: {bar}">{cells}</tr>')
    return f'<table class="legend">{"".join(rows)}</table>'


def describe(name: str) -> str:
    """Say what a model knows, how well, and on which terms."""
    weights = isanet_zoo.get_weights(name)
    fetched = "" if weights.path().exists() else " They are fetched on first use."
    return (
        f"{weights.num_classes} classes of {weights.label_set.title}, mIoU {weights.miou:.2f} as "
        f"reported. Weights: {weights.trust}; {weights.licence.weights}.{fetched}"
    )


with gr.Blocks(title="ISANet", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
    gr.Markdown("# ISANet\nWhat is in a picture, where, and how sure the model is.")
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            photo = gr.File(label="Picture", height=120)  # any file: the library judges it
            if STREET.exists():
                gr.Examples([[str(STREET)]], photo, label="For example")
            name = gr.Dropdown(MODELS, value=BUILT_IN, label="Model")
            about = gr.Markdown(describe(BUILT_IN))
            classes = gr.HTML()
        with gr.Column(scale=2, min_width=480):
            with gr.Tab("Classes"):
                overlay = gr.ImageSlider(label="Before and after", format="jpeg", max_height=560)
            with gr.Tab("Confidence"):
                heat = gr.Image(
                    label="Dark: unsure. Bright: sure",
                    format="jpeg",
                    height=560,
                    buttons=["download", "fullscreen"],
                )
            download = gr.DownloadButton("Download the class map (PNG)", interactive=False)
    shown = [overlay, heat, classes, download]
    name.change(describe, name, about, show_progress="hidden")
    changed = [photo.change, name.change]
    # The browser itself empties the page: what is no longer true does not wait for the queue.
    gr.on(changed, None, None, shown, js="() => [null, null, '', null]")
    gr.on(
        changed,
        segment,
        [photo, name],
        shown,
        show_progress_on=[overlay, heat],
        trigger_mode="always_last",  # who changes their mind while it works is heard
        concurrency_limit=1,  # one picture at a time; other visitors see their place in the queue
    )


def main() -> None:
    """Serve the page, to this machine alone unless GRADIO_SERVER_NAME says otherwise."""
    calm = gr.themes.Default(primary_hue="slate", font="system-ui", font_mono="monospace")
    demo.launch(theme=calm, css=STYLE, footer_links=[])


if __name__ == "__main__":
    main()
