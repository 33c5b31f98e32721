"""Which room of the package may import which; `tests/` mirrors the rooms."""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

import pytest

import isanet_zoo

PACKAGE = Path(isanet_zoo.__file__).parent

GROUND = {"errors", "version", "files", "records"}  # every room may import these

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "files": set(),
    "records": set(),
    "cache": set(),
    "manifest": {"cache"},
    "network": {"cache", "manifest"},
    "imaging": {"manifest"},
    "weights": {"cache", "manifest", "network"},
    # The onnxruntime engine exports a network when it is first used; export imports no engine.
    "engines": {"cache", "export", "imaging", "manifest", "network", "weights"},
    "hub": {"cache", "manifest", "weights"},
    "zoo": {"hub", "manifest", "network", "weights"},
    "factories": {"manifest", "network", "zoo"},
    "inference": {"engines", "imaging", "manifest", "network", "weights", "zoo"},
    "learning": {"cache", "engines", "imaging", "inference", "manifest", "network", "weights"},
    "export": {"imaging", "manifest", "network", "weights"},
    "commands": {
        "cache",
        "engines",
        "export",
        "hub",
        "imaging",
        "inference",
        "learning",
        "manifest",
        "network",
        "weights",
        "zoo",
    },
    "__main__": {"commands"},
}

LAZY = {  # the only imports of a room above, each inside the function that needs it
    ("manifest.weights", "imaging.preprocess"),
    ("network.isanet", "hub.saved"),
}

STARTS_FAST = (  # what `isanet-zoo list` and `--help` import: no torch, no timm
    "errors", "version", "files", "records", "cache", "manifest",
    "commands.main", "commands.arguments", "commands.output", "commands.browse",
)  # fmt: skip


@functools.cache
def modules() -> dict[str, Path]:
    """Return the package's modules by dotted name, without the `__init__` files."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }


def room(module: str) -> str:
    """Return the room of a module: its first part."""
    return module.partition(".")[0]


@functools.cache
def imports(module: str, *, lazy: bool) -> frozenset[str]:
    """Return the modules of this package that a module imports.

    Args:
        module: the importing module.
        lazy: include imports inside functions.
    """
    found = set()
    for node in _statements(ast.parse(modules()[module].read_text("utf-8")), lazy):
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{module}: relative import"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isanet_zoo"):
            source = (node.module or "").removeprefix("isanet_zoo").removeprefix(".")
            for alias in node.names:
                dotted = f"{source}.{alias.name}".removeprefix(".")
                found.add(dotted if dotted in modules() else source)
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("isanet_zoo.")
                for alias in node.names
                if alias.name.startswith("isanet_zoo.")
            }
    return frozenset(found - {""})


def _statements(tree: ast.Module, lazy: bool) -> list[ast.AST]:
    """Return a module's statements; without `lazy`, only those that run when it is imported."""
    if lazy:
        return list(ast.walk(tree))
    found: list[ast.AST] = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        found.append(node)
        pending += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_module_imports_only_allowed_rooms(module: str) -> None:
    allowed = ALLOWED[room(module)] | GROUND | {room(module)}
    edges = imports(module, lazy=True)
    assert {(module, edge) for edge in edges if room(edge) not in allowed} <= LAZY


def test_lazy_edges_are_inside_functions() -> None:
    for module, edge in LAZY:
        assert edge in imports(module, lazy=True)
        assert edge not in imports(module, lazy=False)


def test_module_level_imports_form_no_cycle_and_short_chains() -> None:
    edges = {module: imports(module, lazy=False) for module in modules()}
    length: dict[str, int] = {}
    for module in graphlib.TopologicalSorter(edges).static_order():
        length[module] = 1 + max((length[edge] for edge in edges[module]), default=0)
    assert max(length.values()) <= 11, max(length, key=lambda module: length[module])


def test_rooms_that_start_fast_import_no_torch() -> None:
    for module, path in modules().items():
        if module in STARTS_FAST or room(module) in STARTS_FAST:
            for node in _statements(ast.parse(path.read_text("utf-8")), lazy=False):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                assert not {name.partition(".")[0] for name in names} & {"torch", "timm"}, module


def test_folder_init_files_hold_only_a_docstring() -> None:
    for path in PACKAGE.glob("*/__init__.py"):
        (statement,) = ast.parse(path.read_text("utf-8")).body
        assert isinstance(statement, ast.Expr), path


def test_only_backbones_imports_timm_and_only_commands_print() -> None:
    for name, path in modules().items():
        text = path.read_text("utf-8")
        assert ("import timm" in text) == (name == "network.backbones"), name
        assert "print(" not in text or room(name) == "commands", name
        assert "import warnings" not in text, name
        assert "strict=False" not in text, name
