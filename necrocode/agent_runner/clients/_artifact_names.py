"""How artifacts are named: keys (``{spec}/{task}/{run_id}/{name}``), the descriptions beside them, and ids.

A part of a key is percent-encoded, so that no text from outside is read as a path; an id is the key in base64url
(RFC 4648, section 5), which makes it one path segment that can be turned back.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MOST_VERSIONS = 10_000
PLACE = ("spec_name", "task_id", "run_id")
_FILE_NAMES = {
    "diff": "diff.patch",
    "log": "log.txt",
    "test": "test.json",
    "transcript": "transcript.json",
    "manifest": "manifest.json",
}
_KEY_PARTS = 4
_LONGEST_PART = 255
_LONGEST_KEPT = 200
_CUT_ESCAPE = re.compile(r"%[0-9A-F]?$")
_PART = re.compile(r"[A-Za-z0-9._~% -]+")
_JSON_ARTIFACT = re.compile(r"(test|transcript|manifest)(-\d+)?\.json")
_SIDECAR_ENDING = ".json"


def key_for(artifact_type: str, metadata: Mapping[str, Any]) -> str:
    """The key of the first version; ``ValueError`` for text that is no Unicode."""
    parts = [part(metadata.get(name), name) for name in PLACE]
    name = _FILE_NAMES.get(artifact_type, f"{part(artifact_type, 'artifact', missing='artifact')}.bin")
    return "/".join([*parts, name])


def part(value: object, name: str, *, missing: str | None = None) -> str:
    """A value as one part of a key: any text, in a form that no file system reads as something else."""
    if value is None or value == "":
        return missing or f"no-{name}"
    text = quote(str(value), safe="-_.~ ")
    if len(text) > _LONGEST_KEPT:  # cut, but not to what another long name is cut to, and not inside an escape
        text = f"{_CUT_ESCAPE.sub('', text[:_LONGEST_KEPT])}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text.replace(".", "%2E") if set(text) == {"."} else text


def versions(key: str) -> Iterator[str]:
    """The key, and those that other artifacts of the same name get: ``log.txt``, then ``log-2.txt``."""
    folder, _, name = key.rpartition("/")
    stem, dot, ending = name.partition(".")
    yield key
    for version in range(2, MOST_VERSIONS):
        yield f"{folder}/{stem}-{version}{dot}{ending}"


def task_of(key: str) -> str:
    """The part of a key that all artifacts of a task have."""
    return "/".join(key.split("/")[:2])


def sidecar_of(key: str) -> str:
    """Where an artifact's description is."""
    return f"{key}{_SIDECAR_ENDING}"


def described_by(key: str) -> str | None:
    """The artifact that a description describes; None: the key is an artifact's own."""
    name = key.rpartition("/")[2]
    if not name.endswith(_SIDECAR_ENDING) or _JSON_ARTIFACT.fullmatch(name):
        return None
    return key.removesuffix(_SIDECAR_ENDING)


def is_key(text: str) -> bool:
    """Whether the text can be an artifact's key: four parts, none of which leads elsewhere."""
    parts = text.split("/")
    return (
        len(parts) == _KEY_PARTS
        and all(_PART.fullmatch(one) and len(one) <= _LONGEST_PART and set(one) != {"."} for one in parts)
        and described_by(text) is None
    )


def id_of(key: str) -> str:
    """The id of the artifact at a key."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def key_of_id(artifact_id: str) -> str | None:
    """The key that an id stands for; None for a text that no artifact can have as its id."""
    try:
        key = base64.b64decode(artifact_id + "=" * (-len(artifact_id) % 4), b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return None
    return key if is_key(key) and id_of(key) == artifact_id else None


def id_in(reference: str) -> str:
    """The id in what names an artifact: an id, the URI of a service (``…/artifacts/{id}``), or ``s3://…/{key}``."""
    if "://" not in reference:
        return reference
    if reference.startswith("s3://"):
        return id_of("/".join(reference.split("/")[-_KEY_PARTS:]).replace("%20", " "))
    return unquote(urlsplit(reference).path.rpartition("/artifacts/")[2])
