"""The base of what people write by hand: frozen, no unknown keys, and errors that a person can act on."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, field_validator

from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner._text import is_writable, writable
from necrocode.agent_runner.errors import ConfigurationError, RunnerError

if TYPE_CHECKING:
    from pathlib import Path

    import yaml
    from pydantic_core import ErrorDetails

_LONGEST_SHOWN_VALUE = 60
_URL_WITH_USER = re.compile(r"://[^/]*@")
_MAX_DEPTH = 64
_MAX_VALUES = 100_000
_MAX_CHARACTERS = 1_000_000
_HALF_A_CHARACTER = "holds half a character (a lone surrogate, such as \\ud800)"
_bounded_repr = reprlib.Repr()
_bounded_repr.maxstring = _bounded_repr.maxother = _bounded_repr.maxlong = _LONGEST_SHOWN_VALUE * 2


class StrictModel(BaseModel):
    """A frozen model that raises ``error_type`` naming every wrong field, with the nearest known name for a typo."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True, defer_build=True
    )

    error_type: ClassVar[type[RunnerError]] = ConfigurationError
    what: ClassVar[str] = "configuration"
    secret_fields: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, /, **data: Any) -> None:  # noqa: ANN401  pydantic's own signature
        try:
            super().__init__(**data)
        except ValidationError as error:
            problems = "; ".join(self._explain(detail) for detail in error.errors(include_url=False))
            problems = Redactor(self._given_secrets(data)).text(problems)
            raise self.error_type(f"Invalid {self.what}: {problems}.") from None

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_half_characters(cls, value: object) -> object:
        """Text that UTF-8 cannot hold could be taken in, but never be stored or sent."""
        held = [*value, *value.values()] if isinstance(value, Mapping) else value
        texts = held if isinstance(held, (list, tuple)) else [held]
        if not all(is_writable(str(text)) for text in texts if isinstance(text, (str, PurePath))):
            raise ValueError(_HALF_A_CHARACTER)
        return value

    @classmethod
    def _given_secrets(cls, data: Mapping[str, Any]) -> tuple[str, ...]:
        """Texts among what was given that an error may not tell, wherever they stand."""
        del data
        return ()

    @classmethod
    def known_keys(cls) -> list[str]:
        """The names under which fields may be given, aliases included."""
        aliases = (field.validation_alias for field in cls.model_fields.values())
        return [*cls.model_fields, *(alias for alias in aliases if isinstance(alias, str))]

    @classmethod
    def _explain(cls, detail: ErrorDetails) -> str:
        where = ".".join(str(part) for part in detail["loc"])
        cause = (detail.get("ctx") or {}).get("error")
        if isinstance(cause, RunnerError):  # a nested StrictModel has explained itself already
            return f"{where}: {str(cause).rstrip('.')}"
        if detail["type"] == "missing":
            return f"{where} is missing"
        if detail["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            return f"unknown key {where!r}{cls._suggestion(where)}"
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] in {"tuple_type", "list_type"}:
            message = "must be a list: [a, b], or a line with a dash for each"
        if detail["type"] == "string_type" and isinstance(detail["input"], (int, float)):
            message = "must be text: put it in quotes, for YAML reads 1.10 as the number 1.1"
        return f"{where}: {message}{cls._shown(detail)}" if where else message

    @classmethod
    def _suggestion(cls, key: str) -> str:
        known = cls.known_keys()
        if key in known:
            return " (the same setting is given under its other name too)"
        near = get_close_matches(key, known, n=1, cutoff=0.6)
        return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(sorted(known))})"

    @classmethod
    def _shown(cls, detail: ErrorDetails) -> str:
        try:
            value = _bounded_repr.repr(detail["input"])
        except ValueError:  # a whole number of more digits than Python writes out
            return ""
        is_secret = cls.secret_fields.intersection(map(str, detail["loc"])) or _URL_WITH_USER.search(value)
        hidden = len(value) > _LONGEST_SHOWN_VALUE or is_secret
        return "" if hidden else f" (got {value})"


def check_json(value: dict[str, Any]) -> dict[str, Any]:
    """The mapping, which JSON can hold, within bounds; ``ValueError`` for any other.

    What stands in it twice counts twice, as it will in JSON.
    """
    waiting: list[tuple[object, int]] = [(value, 1)]
    count = characters = 0
    while waiting:
        one, depth = waiting.pop()
        if isinstance(one, str):
            characters += len(one)
            if not is_writable(one):
                raise ValueError(_HALF_A_CHARACTER)
        elif isinstance(one, (dict, list, tuple)):
            inside = [*one, *one.values()] if isinstance(one, dict) else one
            if depth > _MAX_DEPTH:
                raise ValueError(f"is nested more than {_MAX_DEPTH} deep")
            count += len(inside)
            waiting += [(item, depth + 1) for item in inside] if count <= _MAX_VALUES else []
        if count > _MAX_VALUES or characters > _MAX_CHARACTERS:
            raise ValueError(f"holds more than {_MAX_VALUES} values or {_MAX_CHARACTERS} characters")
    try:
        json.dumps(value, default=str, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"must be what JSON can hold ({error})") from error
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(check_json)]
"""A mapping that JSON can hold: at most 64 deep, 100 000 values, a million characters."""


Writable = Annotated[str, AfterValidator(writable)]
"""Somebody else's text, as UTF-8 can hold it."""


class Value(BaseModel):
    """A value that is handed out, not written by hand; unknown keys are ignored so that old readers read new files."""

    model_config = ConfigDict(frozen=True, defer_build=True)


@cache
def _unique_key_loader() -> type[yaml.SafeLoader]:
    import yaml  # noqa: PLC0415  a tenth of the import time, and only those who read a file need it

    class UniqueKeyLoader(yaml.SafeLoader):
        """YAML as people mean it: a key given twice is an error, not a silent override."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  PyYAML's signature
            seen: set[str] = set()
            for key_node, _ in node.value:
                key = str(getattr(key_node, "value", key_node))
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} is given twice", key_node.start_mark
                    )
                seen.add(key)
            return super().construct_mapping(node, deep)

        def get_single_node(self) -> yaml.Node | None:
            """The document, refused when its aliases stand for more than a person would write."""
            node: yaml.Node | None = super().get_single_node()
            if node is not None:
                written: dict[int, int] = {}
                if _expanded_size(node, written) > max(_MAX_VALUES, len(written)):
                    problem = f"its aliases stand for more than {_MAX_VALUES} values"
                    raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
            return node

        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002, ANN401  PyYAML's
            """The value of a node; PyYAML itself fails in many ways over a text that is not what its tag says."""
            try:
                return super().construct_object(node, deep)
            except (LookupError, AttributeError, ValueError, TypeError) as error:
                kind = node.tag.rsplit(":", 1)[-1]
                why = str(error) if isinstance(error, ValueError) else _bounded_repr.repr(node.value)
                problem = f"a value is not the {kind} that it should be ({why})"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    return UniqueKeyLoader


def _expanded_size(node: yaml.Node, written: dict[int, int]) -> int:
    """How many nodes a node stands for, aliases followed; ``written`` gets those of each node that is there."""
    if id(node) not in written:
        written[id(node)] = _MAX_VALUES + 1  # what an alias inside of the node itself stands for
        inside = node.value if not isinstance(node.value, str) else []
        parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        written[id(node)] = 1 + sum(_expanded_size(part, written) for part in parts)
    return written[id(node)]


def _without_snippets(error: Exception) -> str:
    """What is wrong and where, without the lines of the file that PyYAML shows: they may hold a secret."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    parts = ", ".join(filter(None, [getattr(error, "context", None), getattr(error, "problem", None)]))
    return f"{' '.join(parts.split())} (line {mark.line + 1}, column {mark.column + 1})"


def read_yaml_mapping(path: Path, *, what: str, error_type: type[RunnerError]) -> dict[str, Any]:
    """The mapping in a YAML file, in UTF-8; ``error_type`` names the file and line when it cannot be read."""
    loader = _unique_key_loader()
    from yaml import YAMLError, load  # noqa: PLC0415  loaded by the line before

    try:
        data = load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506  a SafeLoader
    except OSError as error:
        raise error_type(f"Cannot read the {what} {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise error_type(f"The {what} {path} is not UTF-8 (byte {error.start}).") from error
    except (YAMLError, ValueError, OverflowError, RecursionError) as error:
        text = "nested too deeply" if isinstance(error, RecursionError) else _without_snippets(error)
        raise error_type(f"The {what} {path} is not valid YAML: {text}.") from None  # the cause would quote the file
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise error_type(f"The {what} {path} must hold a mapping of names to values at its top.")
    return data
