"""What the inside of a function does, by its text alone."""

from __future__ import annotations

import re

REMARK = re.compile(r"\s*(?:#(?! *(?:include|import|define|if|else|endif|pragma)\b)|//|/\*|\*|--|;)")
"""A line that is a remark."""
_LOOSE_STRING = re.compile(r'"""(?:[^"]|"(?!""))*"""|\'\'\'(?:[^\']|\'(?!\'\'))*\'\'\'')
_LAST_REMARK = re.compile(r"(?:^|\s)(?:#|//|/\*)(?=\s|$).*$", re.MULTILINE)
_STUB = re.compile(
    r"(?i)(?:\.\.\.|pass|return(?: (?:none|null|nil))?|raise notimplementederror.*|todo!.*|unimplemented!.*|panic!?\(.*"
    r"|throw new .*)?"
)


def without_remarks(body: str) -> str:
    """A function's inside without remarks that have a line for themselves, docstrings and blank lines."""
    lines = (line.strip() for line in _LOOSE_STRING.sub("", body).split("\n"))
    return "\n".join(line for line in lines if line and not REMARK.match(line))


def does_nothing(body: str) -> bool:
    """Whether it is a stub: nothing, or a statement that stands for what is still to be written."""
    code = _LAST_REMARK.sub("", without_remarks(body)).strip("{}(); \t\n").removesuffix("end").strip()
    return _STUB.fullmatch(code) is not None
