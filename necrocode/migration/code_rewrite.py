"""What is safe to rewrite in code that used the A2A/Kiro runner, rewritten; all else stays byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import libcst as cst

if TYPE_CHECKING:
    from collections.abc import Sequence

    from libcst.metadata import MetadataWrapper

    from necrocode.migration.code_uses import ConfigCall, Plan

_NEW_MODEL = '{name}(api_key=os.getenv("OPENAI_API_KEY"), model="gpt-4", timeout_seconds=120)'
_ANOTHER = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))


def rewritten(wrapper: MetadataWrapper, plan: Plan) -> bytes:
    """The module's bytes after the plan, in its own encoding and with its own line ends."""
    if not plan.config_calls and not plan.unused_imports:
        return wrapper.module.bytes
    return wrapper.module.visit(_Rewriter(plan)).bytes


class _Rewriter(cst.CSTTransformer):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        calls = plan.config_calls.values()
        self._wanting_class = {call.statement for call in calls if call.imports_llm_class}
        self._wanting_os = {call.statement for call in calls if call.imports_os}

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.Call:
        call = self._plan.config_calls.get(original_node)
        if call is None:
            return updated_node
        return updated_node.with_changes(args=_new_arguments(updated_node, call))

    def leave_ImportFrom(
        self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom
    ) -> cst.ImportFrom | cst.RemovalSentinel:
        names = updated_node.names
        if isinstance(names, cst.ImportStar):
            return updated_node
        gone = self._plan.unused_imports.get(original_node, set())
        kept = [alias for alias in names if not (isinstance(alias.name, cst.Name) and alias.name.value in gone)]
        if original_node in self._wanting_class:  # as the first, so that the others keep their commas and comments
            kept.insert(0, cst.ImportAlias(cst.Name("LLMConfig"), comma=_comma_between_names(updated_node)))
        if not kept:
            return cst.RemoveFromParent()
        kept[-1] = kept[-1].with_changes(comma=names[-1].comma)
        return updated_node.with_changes(names=kept)

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement] | cst.RemovalSentinel:
        if not updated_node.body:
            return cst.RemoveFromParent()
        if not self._wanting_os & set(original_node.body):
            return updated_node
        above = cst.SimpleStatementLine([cst.Import([cst.ImportAlias(cst.Name("os"))])], updated_node.leading_lines)
        return cst.FlattenSentinel([above, updated_node.with_changes(leading_lines=())])

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.SimpleStatementSuite:
        del original_node
        return updated_node if updated_node.body else updated_node.with_changes(body=[cst.Pass()])

    def leave_IndentedBlock(
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.IndentedBlock:
        del original_node
        if updated_node.body:
            return updated_node
        return updated_node.with_changes(body=[cst.SimpleStatementLine([cst.Pass()])])


def _new_arguments(updated: cst.Call, call: ConfigCall) -> list[cst.Arg]:
    """The arguments with commas as there were: behind the last of those that replace one stands that one's."""
    between = _comma_between(updated)
    new: list[cst.Arg] = []
    for argument in updated.args:
        several = _replacing(argument, call)
        new += [one.with_changes(comma=between, whitespace_after_arg=cst.SimpleWhitespace("")) for one in several[:-1]]
        new += several[-1:]
    parted = [one if isinstance(one.comma, cst.Comma) else one.with_changes(comma=between) for one in new[:-1]]
    return [*parted, *(one.with_changes(comma=updated.args[-1].comma) for one in new[-1:])]


def _replacing(argument: cst.Arg, call: ConfigCall) -> list[cst.Arg]:
    """What comes in an argument's place, each with its comma and blanks."""
    name = argument.keyword.value if argument.keyword is not None else ""
    if name == "message_bus_url":
        return [_argument(argument, setting, _quoted(url, argument)) for setting, url in call.urls.items()]
    if name != "kiro_url":
        return [argument]
    if call.llm_class is None:
        return []
    return [_argument(argument, "llm_config", cst.parse_expression(_NEW_MODEL.format(name=call.llm_class)))]


def _comma_between(call: cst.Call) -> cst.Comma:
    """A comma and what follows it between two of the arguments, without a comment that belongs to one of them."""
    return _comma_among(call.args, call.whitespace_before_args)


def _comma_between_names(statement: cst.ImportFrom) -> cst.Comma:
    names = () if isinstance(statement.names, cst.ImportStar) else statement.names
    return _comma_among(names, statement.lpar.whitespace_after if statement.lpar else None)


def _comma_among(
    parts: Sequence[cst.Arg | cst.ImportAlias], opening: cst.BaseParenthesizableWhitespace | None
) -> cst.Comma:
    commas = [part.comma for part in parts[:-1] if isinstance(part.comma, cst.Comma)]
    space = commas[0].whitespace_after if commas else opening
    if isinstance(space, cst.ParenthesizedWhitespace):
        first = space.first_line.with_changes(comment=None, whitespace=cst.SimpleWhitespace(""))
        return cst.Comma(whitespace_after=space.with_changes(first_line=first, empty_lines=()))
    return _ANOTHER


def _argument(like: cst.Arg, name: str, value: cst.BaseExpression) -> cst.Arg:
    return like.with_changes(keyword=cst.Name(name), value=value)


def _quoted(text: str, like: cst.Arg) -> cst.SimpleString:
    quote = like.value.quote[0] if isinstance(like.value, cst.SimpleString) else '"'
    return cst.SimpleString(f"{quote}{text}{quote}")
