"""The README.md of a saved model: what it is, how to use it, where it is from, on what terms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.manifest.weights import Metric
from isanet_zoo.weights.configs import Config, Provenance

# How the manifest starts a licence -> how the hub abbreviates it.
LICENCES = {"Apache-2.0": "apache-2.0", "CC BY-NC 4.0": "cc-by-nc-4.0"}

PAPER = """@article{huang2019isa,
  title   = {Interlaced Sparse Self-Attention for Semantic Segmentation},
  author  = {Huang, Lang and Yuan, Yuhui and Guo, Jianyuan and Zhang, Chao and Chen, Xilin and Wang, Jingdong},
  journal = {arXiv preprint arXiv:1907.12273},
  year    = {2019}
}"""  # noqa: E501
DATASETS = {
    "camvid": """@article{brostow2009camvid,
  title   = {Semantic object classes in video: A high-definition ground truth database},
  author  = {Brostow, Gabriel J. and Fauqueur, Julien and Cipolla, Roberto},
  journal = {Pattern Recognition Letters},
  volume  = {30},
  number  = {2},
  year    = {2009}
}"""
}


def licence_id(terms: str) -> str:
    """Return how the hub abbreviates a licence of the manifest; ``"other"`` if it does not.

    Example:
        >>> licence_id("CC BY-NC 4.0, for personal and research use")
        'cc-by-nc-4.0'
    """
    return next((short for long, short in LICENCES.items() if terms.startswith(long)), "other")


def write(config: Config, called: str) -> str:
    """Return the model card of a saved model.

    Args:
        config: its description.
        called: its name: that of its repository, or of its folder.
    """
    sections = {
        "Use": _use(config, called),
        "Preprocessing": _preprocessing(config.preprocess),
        "Classes": _classes(config),
        "Results": _results(config.metrics),
        "Where it comes from": _provenance(config),
        "Licences": _licences(config),
        "Citation": _citation(config.provenance),
    }
    body = "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())
    return f"---\n{_metadata(config, called)}\n---\n\n{_introduction(config, called)}\n{body}"


def _metadata(config: Config, called: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    source = config.provenance.page if config.provenance and config.provenance.unchanged else None
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=_slug(metric.split),
            dataset_name=metric.split,
            metric_type="mean_iou" if metric.name == "mIoU" else _slug(metric.name),
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
        for metric in config.metrics
    ]
    data = ModelCardData(
        library_name="isanet_zoo",
        pipeline_tag="image-segmentation",
        license=config.licence,
        license_name="see-below" if config.licence == "other" else None,
        datasets=[_slug(config.dataset)] if config.dataset else None,
        tags=["isanet", "semantic-segmentation", "timm", "pytorch"],
        model_name=called,
        eval_results=results or None,
    )
    return data.to_yaml()


def _slug(text: str) -> str:
    """Return a name as the hub writes such: ``"pascal-voc-2012-val"``."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-")


def _introduction(config: Config, called: str) -> str:
    network = config.network
    return (
        f"# {called}\n\n"
        "[ISANet](https://arxiv.org/abs/1907.12273) (interlaced sparse self-attention) for "
        f"semantic segmentation, with timm's encoder `{network.backbone}`: {network.num_classes} "
        f"classes, {network.in_chans} input channels. `config.json` has every number of it, "
        "`model.safetensors` its weights."
    )


def _use(config: Config, called: str) -> str:
    if config.network.in_chans == 3:
        lines = [
            "import isanet_zoo",
            "",
            f'model = isanet_zoo.ISANet.from_pretrained("{called}")',
            'segmentation = isanet_zoo.predict(model, "photo.jpg")',
            'segmentation.overlay().save("out.png")',
        ]
    else:
        lines = [
            "import isanet_zoo, torch",
            "",
            f'model = isanet_zoo.ISANet.from_pretrained("{called}")',
            f"images = torch.zeros(1, {config.network.in_chans}, 512, 512)  # as in its training",
            "labels = model(images).argmax(1)  # (B, H, W)",
        ]
    return "\n".join(["```python", *lines, "```"])


def _preprocessing(preprocess: Preprocess) -> str:
    size = "Pictures keep their size."
    if preprocess.resize:
        longest, shortest = preprocess.resize
        size = (
            f"Pictures are resized, bilinearly and with their proportions kept, until they just "
            f"fit {longest} pixels on the longer and {shortest} on the shorter side."
        )
    notes = [
        size,
        f"Channels are ordered {preprocess.order.upper()}; of each in 0..255 the mean is "
        f"subtracted, and it is divided by std (both given as RGB): mean {_row(preprocess.mean)}, "
        f"std {_row(preprocess.std)}.",
    ]
    if preprocess.pad:
        notes.append(f"Smaller ones are filled up to {_row(preprocess.pad)} (height, width).")
    if preprocess.window and preprocess.stride:
        notes.append(
            f"A window of {_row(preprocess.window)} slides over them by {_row(preprocess.stride)} "
            "(height, width)."
        )
    return " ".join([*notes, "`predict` does all of it."])


def _row(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _classes(config: Config) -> str:
    labels = config.label_set
    rows = [
        (index, labels.names[index], f"`{labels.palette[index]}`", labels.official_ids[index])
        for index in range(len(labels))
    ]
    heading = f"{labels.title}; pixels labelled {labels.ignore_index} have no class.\n\n"
    return heading + table(("id", "name", "colour", "id in the annotations"), rows)


def _results(metrics: Sequence[Metric]) -> str:
    if not metrics:
        return "None are recorded."
    rows = [
        (
            metric.name,
            f"{metric.value:.2f}",
            metric.split,
            metric.protocol,
            _row(metric.scales),
            "yes" if metric.flip else "no",
            metric.reported_by,
            "no" if metric.reproduced is None else f"{metric.reproduced:.2f}",
        )
        for metric in metrics
    ]
    heading = ("metric", "value", "on", "how", "scales", "mirrored", "reported by", "measured here")
    return (
        "As reported by those named; the hub has verified none of it. *Measured here* has what "
        "isanet_zoo itself measured, if anybody did.\n\n" + table(heading, rows)
    )


def _provenance(config: Config) -> str:
    digest = f"- State digest (sha256 over the tensors here): `{config.state_digest}`"
    origin = config.provenance
    if origin is None:
        trained = f" It was trained on {config.dataset}." if config.dataset else ""
        return f"It did not start from weights that isanet_zoo knows.{trained}\n\n{digest}"
    if origin.unchanged:
        story = f"The published weights `{origin.weights}`, in isanet_zoo's names of tensors."
    else:
        on = f" on {config.dataset}" if config.dataset else ""
        story = f"Made from the published weights `{origin.weights}`, trained further{on}."
    facts = [
        f"- Published file: {origin.source or 'not known'}",
        f"- Its sha256: {f'`{origin.source_sha256}`' if origin.source_sha256 else 'not known'}",
        f"- Published by: {origin.page or 'isanet_zoo, inside its package'}",
    ]
    return "\n".join([story, "", *facts, digest])


def _licences(config: Config) -> str:
    own = f"- These weights: {config.licence}" if config.licence else "- These weights: not stated"
    if config.provenance is None:
        return own
    terms = config.provenance.licence
    return "\n".join(
        [
            own,
            f"- The published weights: {terms.weights}",
            f"- The data they were trained on: {terms.dataset}",
        ]
    )


def _citation(origin: Provenance | None) -> str:
    known = DATASETS.get(origin.dataset) if origin else None
    entries = "\n\n".join([PAPER, *([known] if known else [])])
    return f"```bibtex\n{entries}\n```"


def table(heading: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
