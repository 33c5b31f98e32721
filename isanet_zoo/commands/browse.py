"""Commands `list`, `info` and `env`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

from isanet_zoo.cache import cache_root
from isanet_zoo.commands.arguments import add_json
from isanet_zoo.commands.output import print_json, print_markdown, print_table, print_tree
from isanet_zoo.manifest.lookup import get_weights, list_models, manifest_path
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.version import __version__

COLUMNS = (
    *("name", "by", "classes", "params M", "crop", "schedule", "mIoU", "ms+flip", "trust"),
    "commercial use",
)
OPTIONAL = ("teacher", "resize", "pad", "window", "stride", "hub")


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `list`."""
    parser.add_argument("filter", nargs="?", default="*", help="a pattern, such as '*resnet101*'")
    parser.add_argument("--dataset", help="only weights for this data set")
    parser.add_argument("--backbone", help="only weights with this backbone")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    add_json(form)


def list_run(options: argparse.Namespace) -> int:
    """Print the published weights."""
    names = list_models(options.filter, dataset=options.dataset, backbone=options.backbone)
    if options.json:
        print_json([_summary(name) for name in names])
        return 0
    rows: list[Sequence[object]] = [COLUMNS]
    for name in sorted(names, key=lambda name: (get_weights(name).model, name)):
        weights = get_weights(name)
        rows.append(
            (
                name,
                weights.family,
                weights.num_classes,
                f"{weights.parameters.without_aux / 1e6:.1f}",
                "x".join(map(str, weights.crop)),
                weights.schedule,
                _format_miou(weights.miou),
                _format_miou(weights.miou_multi_scale),
                _format_trust(weights),
                "yes" if weights.commercial_use else "no",
            )
        )
    if options.markdown:
        print_markdown(rows)
    else:
        print_table(rows)
    return 0


def info_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `info`."""
    parser.add_argument("name", metavar="NAME", help="see `list`")
    add_json(parser)


def info_run(options: argparse.Namespace) -> int:
    """Print all facts about one published weight."""
    summary = _summary(options.name)
    if options.json:
        print_json(summary)
        return 0
    labels = summary.pop("label_set")
    summary["classes"] = ", ".join(name.split(",")[0] for name in labels["names"])
    for fields in (summary, summary["preprocess"]):  # of these, None does not mean unknown
        fields |= {name: "none" for name in OPTIONAL if fields.get(name, "") is None}
    print_tree(summary)
    return 0


def env_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `env`."""
    add_json(parser)


def env_run(options: argparse.Namespace) -> int:
    """Print versions, folders and variables; return 1 if torch cannot be used."""
    report: dict[str, str] = {"isanet_zoo": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "timm", "huggingface_hub", "safetensors", "numpy"):
        try:
            report[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            report[package] = "not installed"
    report |= {"platform": platform.platform(), "cache": str(cache_root())}
    report |= {"manifest": str(manifest_path())}
    for variable in (
        "ISANET_ZOO_CACHE",
        "ISANET_ZOO_MIRROR",
        "ISANET_ZOO_OFFLINE",
        "ISANET_ZOO_PLAIN",
        "HF_HUB_OFFLINE",
    ):
        report[variable] = os.environ.get(variable, "not set")
    healthy = True
    try:
        torch = importlib.import_module("torch")
        report["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        engine = importlib.import_module("isanet_zoo.engines.engine")
        report["device"] = str(device := engine.best_device())
        report["dtype_auto"] = str(engine.measure_speeds(device))
    except (ImportError, OSError, RuntimeError) as error:  # of a broken installation
        report["problem"] = str(error)
        healthy = False
    if options.json:
        print_json(report)
    else:
        print_tree(report)
    return 0 if healthy else 1


def _summary(name: str) -> dict[str, Any]:
    """Return the manifest entry of a weight, its trust and its path."""
    weights = get_weights(name)
    return dataclasses.asdict(weights) | {"trust": weights.trust, "path": str(weights.path())}


def _format_miou(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _format_trust(weights: Weights) -> str:
    """Return the trust of weights, with the length of the prefix if a hash is incomplete."""
    if weights.trust == "verified" and weights.sha256_prefix and not weights.sha256:
        return f"verified (prefix of {len(weights.sha256_prefix)})"
    return weights.trust
