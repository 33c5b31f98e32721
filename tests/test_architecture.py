"""Who may import whom. A new edge is a line in a diff here."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import isanet_zoo

PACKAGE = Path(isanet_zoo.__file__).parent

EDGES: dict[str, set[str]] = {
    # the ground
    "errors": set(),
    "options": {"errors"},
    "records": {"errors"},
    "recipe": {"errors", "options"},
    "labels": {"errors"},
    # what is computed
    "network.config": {"errors", "options"},
    "network.attention": set(),
    "network.hooks": set(),
    "network.depthwise": {"network.hooks"},
    "network.resize": {"network.config"},
    "network.strips": set(),
    "network.folding": {
        "network.attention",
        "network.backbones",
        "network.hooks",
        "network.isanet",
        "network.strips",
    },
    "network.backbones": {"errors", "network.config"},
    "network.isanet": {
        "errors",
        "labels",
        "network.attention",
        "network.backbones",
        "network.config",
        "network.resize",
        "publishing",
    },
    # saved, published and brought back: what the network inherits
    "hugging_face": {"errors", "weights.fetch"},
    "model_card": {"network.config", "weights.configs", "weights.manifest"},
    "publishing": {
        "errors",
        "hugging_face",
        "labels",
        "model_card",
        "network.config",
        "recipe",
        "weights.cache",
        "weights.cards",
        "weights.configs",
        "weights.containers",
        "weights.manifest",
        "weights.reports",
        "weights.tensors",
    },
    # from a picture to a label map
    "inference.images": {"errors"},
    "inference.preprocess": {"inference.images", "network.config"},
    "inference.background": set(),
    "inference.graphs": set(),
    "inference.fused": {"network.config"},
    "inference.upsample": {"inference.fused", "network.config", "network.resize"},
    "inference.segmentation": {"errors", "inference.images", "labels"},
    "inference.predictor": {
        "errors",
        "inference.background",
        "inference.graphs",
        "inference.images",
        "inference.preprocess",
        "inference.segmentation",
        "inference.upsample",
        "network.config",
        "network.depthwise",
        "network.folding",
        "network.isanet",
        "options",
    },
    "inference.files": {
        "errors",
        "inference.background",
        "inference.images",
        "inference.predictor",
        "inference.segmentation",
    },
    # evaluation and training
    "learning.metrics": {"errors"},
    "learning.distributed": {"network.backbones"},
    "learning.data": {"errors", "inference.images", "labels", "weights.manifest"},
    "learning.evaluation": {
        "errors",
        "inference.images",
        "inference.predictor",
        "learning.data",
        "learning.distributed",
        "learning.metrics",
        "network.isanet",
    },
    "learning.transforms": {"inference.preprocess", "learning.data", "network.config", "recipe"},
    "learning.batches": {
        "errors",
        "learning.data",
        "learning.distributed",
        "learning.transforms",
        "recipe",
    },
    "learning.losses": {"errors", "learning.data", "network.isanet"},
    "learning.optimizers": {"network.isanet", "recipe"},
    "learning.trainer": {
        "errors",
        "learning.distributed",
        "learning.losses",
        "learning.optimizers",
        "network.depthwise",
        "network.isanet",
        "options",
        "recipe",
    },
    "learning.training": {
        "errors",
        "learning.batches",
        "learning.data",
        "learning.distributed",
        "learning.evaluation",
        "learning.losses",
        "learning.trainer",
        "learning.transforms",
        "network.isanet",
        "options",
        "recipe",
        "weights.cache",
        "weights.cards",
        "weights.manifest",
    },
    # from a published file to a checked state dict
    "weights.cache": {"errors", "records"},
    "weights.fetch": {"errors", "weights.cache"},
    "weights.manifest": {
        "errors",
        "inference.preprocess",  # only inside `Weights.transforms`: the manifest needs no torch
        "labels",
        "network.config",
        "recipe",
        "records",
        "weights.cache",
    },
    "weights.arrays": {"errors"},
    "weights.containers": {"errors", "weights.arrays", "weights.fetch"},
    "weights.layouts": {"weights.containers"},
    "weights.tensors": {"errors", "weights.containers"},
    "weights.checkpoints": {
        "errors",
        "network.backbones",
        "network.config",
        "network.isanet",
        "weights.containers",
        "weights.layouts",
        "weights.tensors",
    },
    "weights.cards": {
        "errors",
        "labels",
        "network.config",
        "recipe",
        "records",
        "weights.cache",
        "weights.manifest",
        "weights.tensors",
    },
    "weights.configs": {"errors", "records", "weights.cards", "weights.manifest"},
    "weights.reports": set(),
    "weights.acquire": {
        "errors",
        "labels",
        "weights.cache",
        "weights.cards",
        "weights.checkpoints",
        "weights.containers",
        "weights.fetch",
        "weights.manifest",
        "weights.tensors",
    },
    "weights.pinning": {
        "errors",
        "weights.acquire",
        "weights.cache",
        "weights.checkpoints",
        "weights.fetch",
        "weights.manifest",
        "weights.tensors",
    },
    "weights.mirroring": {
        "errors",
        "hugging_face",
        "model_card",
        "records",
        "weights.acquire",
        "weights.cache",
        "weights.containers",
        "weights.manifest",
        "weights.pinning",
        "weights.tensors",
    },
    # the doors
    "zoo": {
        "errors",
        "hugging_face",
        "inference.images",
        "inference.predictor",
        "inference.segmentation",
        "network.backbones",
        "network.config",
        "network.isanet",
        "weights.acquire",
        "weights.cards",
        "weights.checkpoints",
        "weights.layouts",
        "weights.manifest",
        "weights.reports",
    },
    "deploy.graph": {
        "errors",
        "inference.preprocess",
        "network.attention",
        "network.backbones",
        "network.depthwise",
        "network.isanet",
    },
    "deploy.check": {"deploy.graph", "errors", "network.config"},
    "deploy.int8": set(),
    "exporting": {
        "deploy.check",
        "deploy.graph",
        "deploy.int8",
        "errors",
        "inference.images",
        "inference.preprocess",
        "network.isanet",
        "options",
        "records",
        "weights.cache",
    },
    "factories": {"network.isanet", "zoo"},
    "cli": {
        "errors",
        "exporting",
        "hugging_face",
        "inference.files",
        "learning.data",
        "learning.distributed",
        "learning.evaluation",
        "learning.metrics",
        "learning.training",
        "network.isanet",
        "publishing",
        "recipe",
        "records",
        "weights.acquire",
        "weights.cache",
        "weights.checkpoints",
        "weights.manifest",
        "weights.mirroring",
        "weights.pinning",
        "zoo",
    },
    "__main__": {"cli"},
}


def modules() -> dict[str, Path]:
    """Return the package's modules by dotted name; `__init__` files are looked at elsewhere."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }


def imports(path: Path) -> set[str]:
    """Return which of our modules a file imports, at any depth of its code."""
    known = modules()
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isanet_zoo"):
            module = (node.module or "").removeprefix("isanet_zoo").removeprefix(".")
            for alias in node.names:
                dotted = f"{module}.{alias.name}".removeprefix(".")
                found.add(dotted if dotted in known else module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("isanet_zoo")}
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{path}: relative import"
    return found - {""}  # `from isanet_zoo import __version__`


def test_imports_are_those_of_the_table() -> None:
    assert {name: imports(path) for name, path in modules().items()} == EDGES


def test_imports_form_no_cycle() -> None:
    graphlib.TopologicalSorter(EDGES).prepare()


def test_rooms_are_entered_in_one_direction() -> None:
    def room(module: str) -> str:
        return module.partition(".")[0]

    entered = {room(module): set[str]() for module in EDGES}
    for module, edges in EDGES.items():
        entered[room(module)] |= {room(edge) for edge in edges} - {room(module)}
    assert entered["network"] == {"errors", "labels", "options", "publishing"}
    assert entered["inference"] == {"errors", "labels", "network", "options"}
    assert not entered["weights"] & {"zoo", "factories", "cli"}


def test_folders_hold_no_code_of_their_own() -> None:
    for path in PACKAGE.glob("*/__init__.py"):
        (statement,) = ast.parse(path.read_text("utf-8")).body
        assert isinstance(statement, ast.Expr), path


def test_one_file_knows_timm_and_one_talks() -> None:
    for name, path in modules().items():
        text = path.read_text("utf-8")
        assert ("import timm" in text) == (name == "network.backbones"), name
        assert ("print(" in text) == (name == "cli"), name
        assert "import warnings" not in text, name
        assert "strict=False" not in text, name
