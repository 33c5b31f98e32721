"""Commands `download`, `verify`, `cache` and `convert`."""

from __future__ import annotations

import argparse

from isanet_zoo import records
from isanet_zoo.cache import (
    CacheEntry,
    GraphEntry,
    GraphFile,
    cache_root,
    entries,
    graph_entries,
    graph_versions,
    usable_cache,
)
from isanet_zoo.commands.arguments import add_json, add_names
from isanet_zoo.commands.output import print_json, print_note, print_table, print_trust, run_each
from isanet_zoo.errors import InputError, UnknownModelError
from isanet_zoo.manifest.lookup import get_weights, list_models


def download_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `download`."""
    add_names(parser)
    parser.add_argument(
        "--force", action="store_true", help="download again, and accept other tensors"
    )


def download_run(options: argparse.Namespace) -> int:
    """Download, check and convert weights; print their paths."""
    from isanet_zoo.weights.acquire import download

    def fetch(name: str) -> None:
        trust = get_weights(name).trust  # before: "unverified" is a first use
        print(download(name, force=options.force))
        print_trust(name, trust)

    return run_each(list_models() if options.all else options.names, fetch)


def verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    add_json(parser)


def verify_run(options: argparse.Namespace) -> int:
    """Check every cached file; return 1 if one differs from what was stored."""
    with usable_cache():
        problems = {entry.name: _verify(entry.name) for entry in entries()}
    if options.json:
        print_json(problems)
    elif problems:
        print_table((name, problem or "ok") for name, problem in problems.items())
    else:
        print_note(f"nothing is cached in {cache_root()}")
    return 1 if any(problems.values()) else 0


def cache_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cache`."""
    parser.add_argument(
        "--remove", nargs="+", metavar="NAME", default=[], help="delete these weights or graphs"
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="delete the graphs of --engine onnxruntime that other versions made",
    )
    add_json(parser)


def cache_run(options: argparse.Namespace) -> int:
    """Print the folder and the sizes of cached weights and graphs, or delete some."""
    if options.remove:
        return run_each(options.remove, _remove)
    if options.prune:
        return _prune()
    with usable_cache():
        sizes = {entry.name: entry.model.stat().st_size for entry in entries()}
        graphs = {entry.name: entry.record() for entry in graph_entries()}
    if options.json:
        kept = {name: graph and records.write(graph) for name, graph in graphs.items()}
        print_json({"folder": str(cache_root()), "bytes": sizes, "graphs": kept})
        return 0
    print(cache_root())
    rows = [(name, f"{size / 1e6:.1f}", "MB", "") for name, size in sizes.items()]
    rows += [_graph_row(name, graph) for name, graph in graphs.items()]
    if rows:
        print_table(rows)
    return 0


def _graph_row(name: str, graph: GraphFile | None) -> tuple[str, str, str, str]:
    """Return a graph's row in the table of the cache."""
    if graph is None:
        return name, "-", "MB", "graph, damaged"
    outdated = "" if graph.versions == graph_versions() else ", of other versions"
    model = graph.model or "a custom network"
    return name, f"{graph.size / 1e6:.1f}", "MB", f"graph of {model}, {graph.dtype}{outdated}"


def _prune() -> int:
    """Delete graphs that are never used again; print their names."""
    versions = graph_versions()
    with usable_cache():
        for entry in graph_entries():
            record = entry.record()
            if record is None or record.versions != versions:
                entry.remove()
                print(entry.name)
    return 0


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `convert`."""
    parser.add_argument("src", metavar="FILE", help="an upstream checkpoint")
    parser.add_argument("dst", metavar="OUT", help="the .safetensors file to write")
    parser.add_argument(
        "-m", "--model", required=True, metavar="NAME", help="what it was made from"
    )
    parser.set_defaults(verbose=True)  # log the recognised family
    parser.add_argument("--half", action="store_true", help="store float16: half the size")
    parser.add_argument("--force", action="store_true", help="replace any file")


def convert_run(options: argparse.Namespace) -> int:
    """Convert an upstream checkpoint to safetensors; print the path."""
    from isanet_zoo.weights.convert import convert_checkpoint

    print(
        convert_checkpoint(
            options.src, options.dst, options.model, half=options.half, force=options.force
        )
    )
    return 0


def _verify(name: str) -> str | None:
    """Return what is wrong with a cached file, or None."""
    from isanet_zoo.weights.integrity import verify

    try:
        return verify(get_weights(name))
    except UnknownModelError:
        return "its name is not in the manifest"


def _remove(name: str) -> None:
    """Delete one weight or graph from the cache."""
    CacheEntry.of(name)  # checks the name
    with usable_cache():
        cached: list[CacheEntry | GraphEntry] = [*entries(), *graph_entries()]
        found = next((entry for entry in cached if entry.name == name), None)
        if found is None:
            raise InputError(f"{name} is not cached in {cache_root()}")
        for kept in found.remove():
            print_note(f"kept {kept}, which isanet-zoo did not write")
