"""How fast secrets are masked: MB/s beside plain copying of the same text, with 20 secrets, in one run.

``python benchmarks/redaction.py [MEGABYTES]`` (default 32). ``clean`` has no secret, as nearly all output; ``hits`` has
one in every thousandth line. ``flood`` is what that much output of a test command costs: all of it is read, in parts of
64 KiB, and the megabyte that is kept is masked; ``kept`` is the same without the masking.
"""

from __future__ import annotations

import random
import secrets
import statistics
import sys

from _measure import side_by_side

from necrocode.agent_runner._process import HeadAndTail
from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner.verdict.test_run import masked_output

ROUNDS = 7
PART = 65_536


def main() -> None:
    size = int(sys.argv[1]) * 1_000_000 if len(sys.argv) > 1 else 32_000_000
    given = tuple(secrets.token_urlsafe(30) for _ in range(20))
    redactor = Redactor(given)
    clean, hits = make_text(size, ()), make_text(size, given)
    data = clean.encode()

    def kept() -> str:
        output = HeadAndTail(1_000_000)
        for start in range(0, len(data), PART):
            output.write(data[start : start + PART])
        return output.content().decode()

    seconds = side_by_side(
        {
            "copy": lambda: data.decode().encode(),
            "clean": lambda: redactor.text(clean),
            "hits": lambda: redactor.text(hits),
            "kept": kept,
            "flood": lambda: masked_output(kept(), redactor),
        },
        ROUNDS,
    )
    for name, times in seconds.items():
        print(f"{name:<8}{len(data) / statistics.median(times) / 1e6:10.0f} MB/s")


def make_text(size: int, given: tuple[str, ...]) -> str:
    words = random.Random(1)
    lines: list[str] = []
    length = 0
    while length < size:
        secret = words.choice(given) if given and words.randrange(1000) == 0 else "words"
        lines.append(f"2026-01-01T00:00:00Z INFO step {words.randrange(10**6)} of {secret} in /src/app/main.py:17\n")
        length += len(lines[-1])
    return "".join(lines)


if __name__ == "__main__":
    main()
