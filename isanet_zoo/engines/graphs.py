"""ONNX graphs of networks, made once and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from isanet_zoo.cache import GraphEntry, GraphFile, graph_versions, usable_cache
from isanet_zoo.files import hash_file
from isanet_zoo.imaging.reading import ImageLike, find_images, read_image
from isanet_zoo.network.isanet import ISANet

logger = logging.getLogger(__name__)

KEY_LENGTH = 32  # hex digits of a sha256


def cached_graph(network: ISANet, calibrate: ImageLike | Iterable[ImageLike] | None = None) -> Path:
    """Return the path of the ONNX graph of a network, with the output `logits_8`.

    The graph is exported and verified by `export_onnx` when it is first needed, and again if its
    bytes in the cache have changed.

    Args:
        network: the network; it is not changed.
        calibrate: images like those to segment, a folder or an iterable: the graph computes in
            int8, with ranges taken from up to 32 of them.

    Raises:
        InputError: there are no images, or one cannot be read.
        DownloadError: the cache cannot be used.
        ExportError: the graph does not compute what the network computes.
        EnvironmentProblem: a package of the extra `onnx` is missing.
    """
    from isanet_zoo.export.int8 import spread
    from isanet_zoo.weights.saving import describe

    images = None if calibrate is None else spread(list(find_images(calibrate)))
    dtype = "float32" if images is None else "int8"
    versions = graph_versions()
    description = describe(network, check_parts=False)
    # The structure, too: a part of a network may have been exchanged for one with equal tensors.
    facts = [description.text(), repr(network), versions, dtype, _digest(images or ())]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:KEY_LENGTH]
    entry = GraphEntry.of(key)
    with usable_cache():
        if entry.is_intact():
            return entry.model
        with entry.lock():
            if not entry.is_intact():  # another process may have made it meanwhile
                _make(network, images, entry)
                content = (hash_file(entry.model), entry.model.stat().st_size)
                entry.write_side(GraphFile(description.model, dtype, versions, *content))
    return entry.model


def _make(network: ISANet, calibrate: Sequence[ImageLike] | None, entry: GraphEntry) -> None:
    """Export a network into a cache entry that is empty or damaged."""
    from isanet_zoo.export.onnx_file import export_onnx

    if entry.model.exists():
        logger.warning("%s is damaged; it is made again", entry.model)
    logger.info("exporting the network for onnxruntime; this is done once")
    entry.side.unlink(missing_ok=True)
    export_onnx(network, entry.model, output="logits_8", calibrate=calibrate, force=True)


def _digest(images: Sequence[ImageLike]) -> str:
    """Return a hash of images: of their files' bytes, of other images' pixels."""
    digest = hashlib.sha256()
    for image in images:
        if isinstance(image, (str, os.PathLike)):
            digest.update(hash_file(Path(os.fsdecode(image))).encode())
        else:
            pixels = read_image(image).pixels
            digest.update(f"{tuple(pixels.shape)}".encode() + pixels.numpy().tobytes())
    return digest.hexdigest()
