"""Model cards: the README.md of saved models and of mirrors, from Jinja templates."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from isanet_zoo.errors import printable
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights.description import Description

FOLDER = Path(__file__).parent  # of the templates
BPKD = "AkideLiu/BPKD"  # its licence must be reproduced with every copy of its weights


def render(description: Description, name: str) -> str:
    """Return the model card of a saved model.

    Args:
        description: its description.
        name: the name of its repository or folder.
    """
    terms = [description.provenance.licence.weights] if description.provenance else []
    return _render(
        "model_card.md.jinja",
        license=description.licence,
        datasets=[_slug(description.dataset)] if _slug(description.dataset) else None,
        model_name=printable(name) or "isanet",
        eval_results=_results(description) or None,
        values={"name": name, "notice": _notice(terms), **vars(description)},
    )


def render_mirror(weights: Sequence[Weights]) -> str:
    """Return the model card of a mirror that holds these weights."""
    notice = _notice(record.licence.weights for record in weights)
    values = {"weights": weights, "notice": notice}
    return _render("mirror_card.md.jinja", license="other", values=values)


def _notice(terms: Iterable[str]) -> str:
    """Return the licence text that these terms require to be reproduced; empty if none."""
    needed = any(BPKD in text for text in terms)
    return (FOLDER / "bpkd_licence.txt").read_text("utf-8").strip() if needed else ""


def _render(template: str, *, values: dict[str, Any], **metadata: Any) -> str:
    """Fill a template; the metadata is written as YAML in front of the text."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        library_name="isanet_zoo",
        pipeline_tag="image-segmentation",
        license_name="see-below" if metadata["license"] == "other" else None,
        tags=["isanet", "semantic-segmentation", "timm", "pytorch"],
        **metadata,
    )
    path = str(FOLDER / template)
    values = {"text": _text, "code": _code, "link": _link, "row": _row} | values
    return f"{ModelCard.from_template(data, template_path=path, **values)}\n"


def _results(description: Description) -> list[Any]:
    """Return the metrics as the Hub's metadata."""
    from huggingface_hub import EvalResult

    provenance = description.provenance
    source = provenance.page if provenance and provenance.unchanged else None
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=_slug(metric.split) or "unknown",
            dataset_name=metric.split,
            metric_type="mean_iou" if metric.name == "mIoU" else _slug(metric.name) or "unknown",
            metric_name=metric.name,
            metric_value=metric.value,
            metric_args={
                "reported_by": metric.reported_by,
                "protocol": metric.protocol,
                "scales": list(metric.scales),
                "flip": metric.flip,
            },
            verified=False,
            source_name=metric.reported_by if source else None,
            source_url=source,
        )
        for metric in description.metrics
    ]


def _slug(text: str) -> str:
    """Return a name in the form of the Hub's identifiers: ``"pascal-voc-2012-val"``."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-")


def _text(text: str | None) -> str:
    """Return text so that Markdown shows it as it is; HTML and line breaks in it are escaped."""
    special = r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])"  # an underscore within a word is plain
    return re.sub(special, r"\\\g<0>", html.escape(printable(text or "", 1000), quote=False))


def _code(text: str) -> str:
    """Return text as an inline code span, also in a table."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _link(url: str | None) -> str:
    """Return a URL, which Markdown links to; other text as it is."""
    plain = url and re.fullmatch(r"https?://[\w./:?=&%#@+,;~-]+", url, re.ASCII)
    return str(url) if plain else _text(url)


def _row(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
