"""Prints the table of docs/security.md: every attack, tried behind every sandbox of this machine, and behind none.

``python -m tests.security.table``
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from tests.security.attacks import ATTACKS
from tests.security.boxes import DOCKER, NO_TIER, TIERS, Attack, Tier, open_box


def main() -> int:
    """Print the table; 0 unless a sandbox that should hold everything does not."""
    tiers = [tier for tier in (*TIERS, DOCKER) if not tier.why_not()]
    for tier in {*TIERS, DOCKER} - set(tiers):
        print(f"not here: {tier.name}: {tier.why_not()}", file=sys.stderr)
    print("\n".join(table([*tiers, NO_TIER])))
    return 0


def table(tiers: list[Tier]) -> list[str]:
    """The lines, in Markdown."""
    lines = [f"| a test ... | {' | '.join(tier.name for tier in tiers)} |", "|---|" + "---|" * len(tiers)]
    for title, attack in ATTACKS.items():
        lines.append(f"| {title} | {' | '.join(verdict(attack, tier) for tier in tiers)} |")
    return lines


def verdict(attack: Attack, tier: Tier) -> str:
    """What came of one attempt."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        with open_box(tier, Path(folder), monkeypatch) as box:
            try:
                attack(box)
            except (AssertionError, pytest.fail.Exception):
                return "**not stopped**"
            except pytest.skip.Exception:
                return "not tried"
        return "stopped"


if __name__ == "__main__":
    sys.exit(main())
