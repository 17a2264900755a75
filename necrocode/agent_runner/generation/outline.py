"""The symbols of a source file with their lines, by tree-sitter; none where there is no grammar for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from necrocode.agent_runner.generation.grammars import parser_for

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_OUTLINED_BYTES = 300_000
MAX_SYMBOLS = 5000
_MAX_DEPTH = 12
# What grammars call the things that hold others; then the forms around a definition that are not one themselves.
_HOLDERS = ("class", "interface", "trait", "impl", "struct", "module", "namespace", "object", "enum", "mod_", "record")
_AROUND = {
    "decorated_definition", "export_statement", "ambient_declaration", "template_declaration", "linkage_specification",
    "preproc_ifdef", "preproc_if", "preproc_else", "if_statement", "try_statement", "expression_statement", "block",
    "declaration_list", "statement_block", "program", "internal_module", "body_statement",
}  # fmt: skip
_ENDINGS = ("_definition", "_declaration", "_item", "_specifier")
_NAMES = {"class", "module", "method", "singleton_method", "internal_module"}
_NOT_SYMBOLS = {
    "import_declaration", "package_declaration", "use_declaration", "using_declaration", "field_declaration",
    "storage_class_specifier", "type_qualifier", "extern_crate_declaration", "attribute_item", "macro_invocation",
    "lexical_declaration", "variable_declaration", "const_declaration", "var_declaration", "static_item", "const_item",
    "declaration", "public_field_definition", "namespace_use_declaration", "enum_variant", "property_declaration",
}  # fmt: skip
_FUNCTION_VALUES = {"arrow_function", "function_expression", "function", "generator_function", "class"}


class Symbol(NamedTuple):
    """A definition; lines count from 1, both ends included."""

    name: str
    start: int
    """Its first line, decorators included."""
    end: int
    body: int
    """The line on which its body begins."""
    holders: tuple[str, ...]
    """The names of what it is in, outermost first."""
    holds_others: bool


def outline(path: str, content: bytes) -> tuple[Symbol, ...]:
    """Definitions at the top level and inside of classes and their like, in order; functions' insides are not told."""
    if len(content) > MAX_OUTLINED_BYTES:
        return ()
    parser = parser_for(path)
    if parser is None:
        return ()
    found: list[Symbol] = []
    _collect(parser.parse(content).root_node, (), found, 0)
    return tuple(sorted(found, key=lambda symbol: (symbol.start, -symbol.end)))


def _collect(scope: Node, holders: tuple[str, ...], found: list[Symbol], depth: int) -> None:
    for node in scope.named_children:
        if len(found) >= MAX_SYMBOLS or depth > _MAX_DEPTH:
            return
        inner = _definition_in(node)
        if inner is None:
            if node.type in _AROUND:
                _collect(node, holders, found, depth + 1)
            continue
        _add(node, inner, holders, found, depth)


def _add(node: Node, inner: Node, holders: tuple[str, ...], found: list[Symbol], depth: int) -> None:
    name = _name_of(inner)
    body = inner.child_by_field_name("body")
    holds_others = body is not None and any(part in inner.type for part in _HOLDERS)
    body_line = node.start_point[0] + 1 if body is None else body.start_point[0] + 1
    if name:
        found.append(Symbol(name, node.start_point[0] + 1, _end_line(node), body_line, holders, holds_others))
    if body is not None and holds_others:
        _collect(body, (*holders, name) if name else holders, found, depth + 1)


def _end_line(node: Node) -> int:
    row, column = node.end_point
    return max(row + (1 if column else 0), node.start_point[0] + 1)


def _definition_in(node: Node) -> Node | None:
    """The definition that a node is, or that is inside of its decorators or ``export``."""
    kind = node.type
    if kind == "decorated_definition":
        return node.child_by_field_name("definition")
    if kind == "export_statement":
        declared = node.child_by_field_name("declaration")
        return None if declared is None else _definition_in(declared)
    if kind in {"lexical_declaration", "variable_declaration"}:
        return _function_variable(node)
    if kind in _NAMES or (kind.endswith(_ENDINGS) and kind not in _NOT_SYMBOLS):
        return node if kind not in _AROUND else None
    return None


def _function_variable(node: Node) -> Node | None:
    """``const f = () => …`` defines ``f``."""
    for child in node.named_children:
        value = child.child_by_field_name("value") if child.type == "variable_declarator" else None
        if value is not None and value.type in _FUNCTION_VALUES:
            return child
    return None


def _name_of(node: Node) -> str:
    named = node.child_by_field_name("name")
    declarator = node.child_by_field_name("declarator")
    for _ in range(_MAX_DEPTH):
        if named is not None or declarator is None:
            break
        named = declarator.child_by_field_name("name")
        inner = declarator.child_by_field_name("declarator")
        if named is None and inner is None:
            named = declarator
        declarator = inner
    if named is None:
        named = node.child_by_field_name("type")  # what a Rust impl is for
    if named is None and node.named_children and node.type == "type_declaration":
        return _name_of(node.named_children[0])
    text = b"" if named is None else named.text or b""
    return text.decode(errors="replace")[:200]
