"""The rooms of the package: imports between them point one way, and stand at the top of a file."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "projects" / "MimicDet" / "mimicdet"
# Optional, or slow to import where most runs do not need them.
HEAVY = {"cv2", "matplotlib", "onnx", "onnxruntime", "onnxscript", "safetensors", "timm"}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(name):
    """(module inside the package or outside, whether inside a function) of each import."""
    package = name.split(".")[:-1]
    tree = ast.parse(FILES[name].read_text())
    functions = [x for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)]
    inside = {id(x) for function in functions for x in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, False, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node.module, False, id(node) in inside
                continue
            base = package[: len(package) - node.level + 1]
            parts = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                module = ".".join([*parts, alias.name])
                known = module in FILES or f"{module}.__init__" in FILES
                yield module if known else ".".join(parts), True, id(node) in inside


def cycle(edges):
    """A cycle in a graph of {node: successors}, as a list of nodes; [] where there is none."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for successor in sorted(edges.get(node, ())):
            if found := visit(successor):
                return found
        done.add(path.pop())
        return []

    return next((found for node in sorted(edges) if (found := visit(node))), [])


def test_a_cycle_is_seen():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_rooms_form_no_cycle():
    edges = {}
    for name in FILES:
        room = name.split(".")[0]
        for module, own, _ in imported(name):
            # The package's own __init__ gathers what all rooms offer.
            if own and room != "__init__" and module.split(".")[0] != room:
                assert module, f"{name} imports the whole package"
                edges.setdefault(room, set()).add(module.split(".")[0])
    assert len(edges) > 8 and cycle(edges) == []


def test_files_form_no_cycle():
    edges = {}
    for name in FILES:
        targets = {module for module, own, _ in imported(name) if own}
        edges[name] = {x if x in FILES else f"{x}.__init__" for x in targets}
    assert cycle(edges) == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_inside_functions_are_of_heavy_packages(name):
    late = [module for module, own, inside in imported(name) if inside]
    assert {x.split(".")[0] for x in late} <= HEAVY
