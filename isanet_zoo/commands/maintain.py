"""Commands `pin` and `mirror`, for maintainers."""

from __future__ import annotations

import argparse
from pathlib import Path

from isanet_zoo.commands.arguments import add_dry_run, add_manifest, add_names
from isanet_zoo.commands.output import print_dry, run_each
from isanet_zoo.files import check_target
from isanet_zoo.manifest.lookup import list_models, load_manifest, manifest_path


def pin_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pin`."""
    add_names(parser)
    add_manifest(parser)


def pin_run(options: argparse.Namespace) -> int:
    """Write sha256, size and state digest of published files into the manifest."""
    from isanet_zoo.weights.pinning import pin

    manifest = _writable_manifest(options)
    names = list_models() if options.all else options.names
    return run_each(names, lambda name: print(name, pin(name, manifest).sha256))


def mirror_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `mirror`."""
    parser.add_argument("repo", metavar="REPO", help="a repository of the Hugging Face Hub")
    add_names(parser)
    add_manifest(parser)
    add_dry_run(parser)


def mirror_run(options: argparse.Namespace) -> int:
    """Upload converted weights to the Hub; write their URLs into the manifest."""
    from isanet_zoo.hub.mirror import find_files, mirror, render_texts

    manifest = _writable_manifest(options)
    known = load_manifest(manifest)
    names = options.names or [name for name in known if not known[name].packaged]
    if options.dry_run:
        files = find_files(names, manifest)
        rows = [(f"{file.size / 1e6:.3f}", "MB", file.sha256, file.path) for file in files]
        print_dry(rows, render_texts(files, options.repo, manifest)["README.md"])
        return 0
    for file in mirror(names, options.repo, manifest):
        print(file.sha256, file.url)
    return 0


def _writable_manifest(options: argparse.Namespace) -> Path:
    """Return the manifest, which is checked before the work whose result it receives."""
    manifest: Path = options.manifest or manifest_path()
    check_target(manifest, force=True)
    return manifest
