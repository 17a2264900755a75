"""Where code uses what the A2A/Kiro runner had: by where a name comes from, not by how it is spelled."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import libcst as cst
from libcst.helpers import get_full_name_for_node
from libcst.metadata import (
    MetadataWrapper,
    ParentNodeProvider,
    PositionProvider,
    QualifiedNameProvider,
    QualifiedNameSource,
    Scope,
    ScopeProvider,
)

from necrocode.agent_runner.removed import (
    REMOVED_NAMES,
    REMOVED_SETTINGS,
    SECTION_NAMES,
    SECTION_SETTINGS,
    SECTION_VARIABLES,
    explain_setting,
    successor,
)
from necrocode.migration.old_settings import NEW_PORTS, service_urls

if TYPE_CHECKING:
    from collections.abc import Iterable

SECTION_ORCHESTRATOR = "Example 1: Make a RunnerOrchestrator"
SECTION_TASK = "Example 2: Run a task"
SECTION_ARTIFACT = "Example 3: Upload an artifact"
_OLD_PACKAGES = {"a2a_protocol", "kiro_client"}
_OLD_NAME = re.compile(rf"(necrocode|a2a_protocol|kiro_client)(\.\w+)*\.({'|'.join(REMOVED_NAMES)})")
_CONFIG = re.compile(r"necrocode\.agent_runner(\.config)?\.RunnerConfig(\.from_env|\.from_yaml)?")
# The names and calls that the guide's old examples show.
_GUIDE_CALLS = {
    "receive_task": SECTION_TASK, "generate_code": SECTION_TASK, "send_result": SECTION_TASK,
    "notify_artifact_created": SECTION_ARTIFACT,
}  # fmt: skip
_GUIDE_VARIABLES = {"a2a_client", "kiro_client", "message_bus", "agent_registry", "kiro_agent", "a2a_protocol"}
_OLD_VARIABLES = {"MESSAGE_BUS_URL", "KIRO_URL"}
_READS = re.compile(r"(os\.)?(getenv|environ\.get)")


@dataclass(frozen=True, order=True)
class Use:
    """One use: its line, what it is, and the section of the guide that says what to do."""

    line: int
    what: str
    section: str


@dataclass
class Plan:
    """What can be rewritten: the calls that make settings, and imports that nothing uses."""

    config_calls: dict[cst.Call, ConfigCall] = field(default_factory=dict)
    unused_imports: dict[cst.ImportFrom, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigCall:
    """A call whose old keywords are replaced: by ``urls``, and by an ``LLMConfig`` that is made as ``llm_class``.

    ``statement`` is the import that RunnerConfig comes by.
    """

    urls: dict[str, str]
    llm_class: str | None
    statement: cst.Import | cst.ImportFrom
    imports_llm_class: bool
    imports_os: bool


def find_uses(wrapper: MetadataWrapper, *, is_package: bool) -> tuple[list[Use], Plan]:
    """Every use that is left for a person, in order, and the plan for the others."""
    origins = _Origins()
    wrapper.visit(origins)
    finder = _Finder(origins, is_package=is_package)
    wrapper.visit(finder)
    return sorted(set(finder.uses)), finder.plan


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES: ClassVar = (PositionProvider, QualifiedNameProvider, ScopeProvider, ParentNodeProvider)

    has_star: bool = False
    """Whether the module imports all names of the SDK, so that one that it does not define is taken for the SDK's."""

    def origins(self, node: cst.CSTNode) -> tuple[set[str], bool]:
        """The dotted names that imports may give the expression, and whether it is nothing else for certain."""
        names = self.get_metadata(QualifiedNameProvider, node, set())
        found = {name.name for name in names if name.source is QualifiedNameSource.IMPORT}
        if not names and self.has_star and isinstance(node, (cst.Name, cst.Attribute)):
            return {f"necrocode.agent_runner.{get_full_name_for_node(node)}"}, True
        return found, len(names) == len(found) == 1

    def origin(self, node: cst.CSTNode) -> str:
        """The dotted name that an import gives the expression; empty when it is not certain."""
        found, is_certain = self.origins(node)
        return found.pop() if is_certain else ""

    def is_old(self, node: cst.CSTNode) -> bool:
        return _OLD_NAME.fullmatch(self.origin(node)) is not None

    def ancestor(self, node: cst.CSTNode, kind: type[cst.CSTNode]) -> cst.CSTNode | None:
        parent = self.get_metadata(ParentNodeProvider, node, None)
        while parent is not None and not isinstance(parent, kind):
            parent = self.get_metadata(ParentNodeProvider, parent, None)
        return parent


class _Origins(_Visitor):
    """What variables hold an object of an old class, which texts the module holds, and what it imports."""

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[cst.CSTNode, str] = {}  # where a variable gets it -> the class
        self.attributes: dict[tuple[cst.CSTNode | None, str], str] = {}  # class and "self.x" -> the old class
        self.texts: set[str] = set()
        self.is_about_necrocode = False

    def visit_Import(self, node: cst.Import) -> None:
        for alias in node.names:
            self._note_import(get_full_name_for_node(alias.name))

    def visit_ImportFrom(self, node: cst.ImportFrom) -> None:
        if not node.relative and node.module is not None:
            name = get_full_name_for_node(node.module)
            self._note_import(name)
            self.has_star |= isinstance(node.names, cst.ImportStar) and (name or "").startswith("necrocode")

    def _note_import(self, name: str | None) -> None:
        self.is_about_necrocode |= (name or "").partition(".")[0] in {"necrocode", *_OLD_PACKAGES}

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        value = node.evaluated_value
        if isinstance(value, str):
            self.texts.update(re.findall(r"\w+", value))

    def visit_Assign(self, node: cst.Assign) -> None:
        for target in node.targets:
            self._note(target.target, node.value)

    def visit_AnnAssign(self, node: cst.AnnAssign) -> None:
        self._note(node.target, node.value)

    def visit_NamedExpr(self, node: cst.NamedExpr) -> None:
        self._note(node.target, node.value)

    def visit_WithItem(self, node: cst.WithItem) -> None:
        if node.asname is not None:
            self._note(node.asname.name, node.item)

    def visit_Param(self, node: cst.Param) -> None:
        if node.annotation is not None and self.is_old(node.annotation.annotation):
            self.variables[node] = _last(self.origin(node.annotation.annotation))

    def _note(self, target: cst.CSTNode, value: cst.BaseExpression | None) -> None:
        if not isinstance(value, cst.Call) or not self.is_old(value.func):
            return
        old = _last(self.origin(value.func))
        if isinstance(target, cst.Name):
            self.variables[target] = old
        elif isinstance(target, cst.Attribute):
            self.attributes[self.ancestor(target, cst.ClassDef), get_full_name_for_node(target) or ""] = old


class _Finder(_Visitor):
    def __init__(self, origins: _Origins, *, is_package: bool) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self.plan = Plan()
        self._origins = origins
        self.has_star = origins.has_star
        self._is_package = is_package
        self._replaced: set[cst.Arg] = set()
        self._os_scopes: set[Scope] = set()  # where "import os" is planned already

    def _add(self, node: cst.CSTNode, what: str, section: str) -> None:
        self.uses.append(Use(self.get_metadata(PositionProvider, node).start.line, what, section))

    # ---- Imports

    def visit_Import(self, node: cst.Import) -> bool:
        for alias in node.names:
            name = get_full_name_for_node(alias.name) or ""
            if name.partition(".")[0] in _OLD_PACKAGES:
                self._add(node, f"import of {name}", SECTION_NAMES)
        return False

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:
        module = "" if node.relative or node.module is None else get_full_name_for_node(node.module) or ""
        package = module.partition(".")[0]
        if isinstance(node.names, cst.ImportStar):
            if package in _OLD_PACKAGES:
                self._add(node, f"import of {module}", SECTION_NAMES)
            return False
        for alias in node.names:
            name = get_full_name_for_node(alias.name) or ""
            if package in _OLD_PACKAGES or (package == "necrocode" and name in REMOVED_NAMES):
                self._note_import(node, alias, name)
        gone = self.plan.unused_imports.get(node, set())
        if len(gone) == len(node.names) and self._is_commented(node):  # a comment is not thrown away
            del self.plan.unused_imports[node]
            for name in gone:
                self._add(node, f"import of {name}", SECTION_NAMES)
        return False

    def _is_commented(self, node: cst.ImportFrom) -> bool:
        line = self.ancestor(node, cst.SimpleStatementLine)
        if not isinstance(line, cst.SimpleStatementLine):
            return False
        return line.trailing_whitespace.comment is not None or any(one.comment for one in line.leading_lines)

    def _note_import(self, node: cst.ImportFrom, alias: cst.ImportAlias, name: str) -> None:
        bound = get_full_name_for_node(alias.asname.name) if alias.asname else name
        is_tried = self.ancestor(node, cst.Try) is not None
        is_exported = self._is_package or bound in self._origins.texts or (alias.asname is not None and bound == name)
        scope = self.get_metadata(ScopeProvider, node, None)
        uses = [access for one in (scope[bound] if scope and bound else ()) for access in one.references]
        if is_tried or is_exported or uses or name not in REMOVED_NAMES:
            self._add(node, f"import of {name}", SECTION_NAMES)
        else:
            self.plan.unused_imports.setdefault(node, set()).add(name)

    # ---- Names, attributes and texts

    def visit_Name(self, node: cst.Name) -> None:
        if self.is_old(node):
            self._add(node, f"use of {_last(self.origin(node))}", SECTION_NAMES)

    def visit_Attribute(self, node: cst.Attribute) -> None:
        if self.is_old(node):
            self._add(node, f"use of {_last(self.origin(node))}", SECTION_NAMES)

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        value = node.evaluated_value
        if value in _OLD_VARIABLES:
            self._add(node, f"the variable {value}", SECTION_VARIABLES)
        elif isinstance(value, str) and value in REMOVED_SETTINGS and self._origins.is_about_necrocode:
            self._add(node, f'the text "{value}"', SECTION_SETTINGS)

    # ---- Calls

    def visit_Arg(self, node: cst.Arg) -> bool:
        return node not in self._replaced

    def visit_Call(self, node: cst.Call) -> None:
        if any(map(_CONFIG.fullmatch, self.origins(node.func)[0])):
            self._note_config(node)
        elif isinstance(node.func, cst.Attribute):
            self._note_call(node, node.func)

    def _note_call(self, node: cst.Call, func: cst.Attribute) -> None:
        base, method = get_full_name_for_node(func.value) or "", func.attr.value
        section = _GUIDE_CALLS.get(method, SECTION_TASK)
        old = self._class_of(func.value, base)
        if old:
            self._add(node, f"call of {base}.{method}() on a {old}", section)
        elif _last(base) in _GUIDE_VARIABLES and (method in _GUIDE_CALLS or self._origins.is_about_necrocode):
            self._add(node, f"call of {base}.{method}(), by its name one of the old runner's", section)

    def _class_of(self, value: cst.BaseExpression, text: str) -> str:
        """The old class of which a variable or attribute holds an object, whatever is assigned to it."""
        if isinstance(value, cst.Attribute):
            return self._origins.attributes.get((self.ancestor(value, cst.ClassDef), text), "")
        scope = self.get_metadata(ScopeProvider, value, None)
        assigned = [getattr(one, "node", None) for one in scope[text]] if scope and text else []
        classes = {self._origins.variables.get(node, "") if node is not None else "" for node in assigned}
        return classes.pop() if len(classes) == 1 else ""

    def _note_config(self, node: cst.Call) -> None:
        keywords = {arg.keyword.value: arg for arg in node.args if arg.keyword is not None}
        old = [name for name in REMOVED_SETTINGS if name in keywords]
        for name, arg in keywords.items():
            if name not in old and explain_setting(name) is not None:
                told = successor(name) or "nothing took its place"
                self._add(arg, f"{name}= of RunnerConfig ({told})", SECTION_SETTINGS)
        if not old:
            return
        call = self._planned(node, keywords)
        if isinstance(call, ConfigCall):
            self.plan.config_calls[node] = call
            self._replaced |= {keywords[name] for name in old}
        else:
            for name in old:
                self._add(keywords[name], f"{name}= of RunnerConfig ({call})", SECTION_ORCHESTRATOR)

    def _planned(self, node: cst.Call, keywords: dict[str, cst.Arg]) -> ConfigCall | str:
        """How a call is rewritten, or why it is not."""
        if any(arg.star for arg in node.args):
            return "other arguments come by * or **"
        urls: dict[str, str] | None = {}
        if "message_bus_url" in keywords and not set(NEW_PORTS) & set(keywords):
            value = _literal(keywords["message_bus_url"].value)
            urls = service_urls(value) if value is not None else None
        if urls is None:
            return "no host can be read from its value"
        if "kiro_url" in keywords and not _is_harmless(keywords["kiro_url"].value):
            return "its value is computed"
        needs_model = "kiro_url" in keywords and not {"llm", "llm_config"} & set(keywords)
        return self._with_names(node, urls, needs_model=needs_model)

    def _with_names(self, node: cst.Call, urls: dict[str, str], *, needs_model: bool) -> ConfigCall | str:
        """The call, with the names that it needs; they are imported where RunnerConfig is."""
        func = node.func
        path = get_full_name_for_node(func) or ""
        prefix = path.removesuffix(".from_env").removesuffix(".from_yaml").rpartition(".")[0]
        first: cst.BaseExpression = func
        while isinstance(first, cst.Attribute):
            first = first.value
        scope = self.get_metadata(ScopeProvider, first, None)
        assigned = list(scope[get_full_name_for_node(first) or ""]) if scope else []
        statement = getattr(assigned[0], "node", None) if len(assigned) == 1 else None
        if scope is None or not isinstance(statement, (cst.Import, cst.ImportFrom)):
            return "RunnerConfig does not come by one import of its name"
        if not needs_model:
            return ConfigCall(urls, None, statement, imports_llm_class=False, imports_os=False)
        os_names = scope.get_qualified_names_for("os")
        if any(one.name != "os" or one.source is not QualifiedNameSource.IMPORT for one in os_names):
            return '"os" is something else here'
        llm_class = f"{prefix}.LLMConfig" if prefix else self._imported_as(statement)
        known = scope.get_qualified_names_for("LLMConfig")
        if llm_class is None and known:
            return '"LLMConfig" comes from elsewhere here'
        place = self.get_metadata(ScopeProvider, statement, scope)
        imports_os = not os_names and place not in self._os_scopes
        self._os_scopes |= {place} if imports_os and place is not None else set()
        return ConfigCall(
            urls, llm_class or "LLMConfig", statement, imports_llm_class=llm_class is None, imports_os=imports_os
        )

    def _imported_as(self, statement: cst.Import | cst.ImportFrom) -> str | None:
        """Under which name the statement that imports RunnerConfig imports LLMConfig too."""
        names: Iterable[cst.ImportAlias] = () if isinstance(statement.names, cst.ImportStar) else statement.names
        for alias in names:
            if get_full_name_for_node(alias.name) == "LLMConfig":
                return get_full_name_for_node(alias.asname.name) if alias.asname else "LLMConfig"
        return None


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _literal(value: cst.BaseExpression) -> str | None:
    text = value.evaluated_value if isinstance(value, (cst.SimpleString, cst.ConcatenatedString)) else None
    return text if isinstance(text, str) else None


def _is_harmless(value: cst.BaseExpression) -> bool:
    """Whether nothing is lost when the expression is no longer computed."""
    if isinstance(value, cst.Call):
        return _READS.fullmatch(get_full_name_for_node(value.func) or "") is not None
    return isinstance(value, (cst.SimpleString, cst.ConcatenatedString, cst.Name, cst.Attribute, cst.Subscript))
