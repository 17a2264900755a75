"""What importing the SDK costs, as a multiple of starting Python: ``python benchmarks/import_time.py``."""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial

from _measure import median_ratio, side_by_side

HEAVY = ("openai", "boto3", "git", "requests", "sqlalchemy", "tenacity", "yaml")
SUBJECTS = {
    "python -c pass": "pass",
    "import necrocode.agent_runner": "import necrocode.agent_runner",
    "... and touch RunnerOrchestrator": "from necrocode.agent_runner import RunnerOrchestrator",
    "import pydantic, one model": "from pydantic import BaseModel\nclass M(BaseModel):\n    x: int",
    "import openai": "from openai import OpenAI",
}
ROUNDS = 15


def main() -> None:
    subjects = {name: partial(run, code) for name, code in SUBJECTS.items()}
    seconds = side_by_side(subjects, ROUNDS)
    base = next(iter(SUBJECTS))
    print(f"{'':<36}{'ms':>7}{'ratio':>8}    (medians of {ROUNDS} rounds)")
    for name in SUBJECTS:
        print(f"{name:<36}{statistics.median(seconds[name]) * 1000:7.0f}{median_ratio(seconds, name, base):8.2f}")
    for code in ("import necrocode.agent_runner", "from necrocode.agent_runner import RunnerOrchestrator"):
        print(f"heavy packages in sys.modules after {code!r}: {', '.join(loaded_by(code)) or 'none'}")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def loaded_by(code: str) -> list[str]:
    names = run(f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])")
    return names.split()


if __name__ == "__main__":
    main()
