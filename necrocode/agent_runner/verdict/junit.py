"""JUnit XML, as pytest, vitest, surefire, gradle, nextest and node write it.

Sources: the schemas of pytest (``xunit1``, ``xunit2``) and of Maven Surefire (``surefire-test-report.xsd``). What all
have: a ``testcase`` with ``classname``, ``name`` and ``time``; inside of it ``failure``, ``error`` or ``skipped``, with
the reason in ``message`` and as text. Surefire's ``flakyFailure`` and ``flakyError`` tell of a case that passed in the
end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax import SAXException
from xml.sax.handler import ContentHandler

from necrocode.agent_runner.verdict.cases import CaseBook, UnreadableReport, group_name, seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from xml.sax.xmlreader import AttributesImpl

    from necrocode.agent_runner.test_results import CaseStatus, TestCase

_MAX_DEPTH = 100
_MAX_ELEMENTS = 500_000
_STATUS_OF: dict[str, CaseStatus] = {"failure": "failed", "error": "error", "skipped": "skipped"}


def parse_junit(contents: Iterable[bytes]) -> tuple[TestCase, ...]:
    """The cases in these files together; :class:`UnreadableReport` when one of them is no whole report."""
    book = CaseBook()
    handler = _JUnitHandler(book)
    for content in contents:
        _read(content, handler)
    return book.cases()


def _read(content: bytes, handler: ContentHandler) -> None:
    from defusedxml import DefusedXmlException  # noqa: PLC0415  only runs with such a report need it
    from defusedxml.sax import make_parser  # noqa: PLC0415

    parser = make_parser()
    parser.forbid_dtd = True  # no report needs one, and every bomb does
    parser.setContentHandler(handler)
    try:
        parser.feed(content)  # whole: in chunks, older expats read a long token anew for each of them
        parser.close()
    except DefusedXmlException as error:
        raise UnreadableReport("holds a document type or entities, which no report has") from error
    except SAXException as error:
        raise UnreadableReport(f"is not whole XML ({' '.join(error.getMessage().split())[:100]})") from error
    except (ValueError, LookupError) as error:  # an encoding that is unknown, or not what the bytes are in
        raise UnreadableReport(f"is in an encoding that cannot be read ({str(error)[:100]})") from error


class _JUnitHandler(ContentHandler):
    def __init__(self, book: CaseBook) -> None:
        super().__init__()
        self._book = book
        self._path: list[str] = []
        self._elements = 0
        self._suites: list[str] = []  # for each that is open, its name after those around it
        self._name = ""
        self._is_file = False
        self._status: CaseStatus = "passed"
        self._seconds: float | None = None
        self._message = ""
        self._text: list[str] = []
        self._is_reason = False

    def startElement(self, name: str, attrs: AttributesImpl) -> None:  # noqa: N802  SAX's name
        if not self._path and name not in {"testsuites", "testsuite"}:
            raise UnreadableReport(f"is no JUnit report: its root is {name[:40]!r}")
        self._path.append(name)
        self._elements += 1
        if self._elements > _MAX_ELEMENTS:
            raise UnreadableReport(f"holds more than {_MAX_ELEMENTS} elements")
        if len(self._path) > _MAX_DEPTH:
            raise UnreadableReport(f"is nested more than {_MAX_DEPTH} deep")
        if name == "testsuite":
            self._suites.append(group_name(" > ".join([*self._suites[-1:], attrs.get("name") or ""])))
        elif name == "testcase":
            classname, name = attrs.get("classname") or "", attrs.get("name") or ""
            self._name = self._named(classname, name)
            self._is_file = classname in {"", name} and "classname" in attrs  # as pytest and vitest name a file
            self._status, self._seconds = "passed", seconds_of(attrs.get("time"))
            self._message, self._text, self._is_reason = "", [], False
        elif name in _STATUS_OF and self._path[-2] == "testcase":
            self._reason(_STATUS_OF[name], attrs.get("message") or attrs.get("type") or "")

    def _named(self, classname: str, name: str) -> str:
        if classname == "test":  # node says that of every case, and who contains it by nested suites
            return " > ".join([*self._suites[-1:], name])
        return f"{classname}::{name}" if classname and name else classname or name

    def _reason(self, status: CaseStatus, message: str) -> None:
        """The first reason that is a failure tells; a later one may come from the clean-up after it."""
        if self._status in {"passed", "skipped"}:
            self._status, self._message = status, message
            self._text, self._is_reason = [], True

    def characters(self, content: str) -> None:
        if self._is_reason and self._path[-1] in _STATUS_OF:
            self._text.append(content)

    def endElement(self, name: str) -> None:  # noqa: N802  SAX's name
        self._path.pop()
        if name == "testsuite":
            self._suites.pop()
        elif name == "testcase" and self._name:
            self._book.add(
                self._name,
                self._status,
                message=self._message,
                details="".join(self._text),
                duration_seconds=self._seconds,
                ran=not (self._is_file and self._status in {"failed", "error"}),
            )
            self._name = ""
