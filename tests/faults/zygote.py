"""A process that has everything imported and forks a runner for each line it is given, so that dying is cheap.

A line is JSON: ``state``, ``task``, ``model_url``, ``dies_at``, ``does`` (run, resume) and ``told``, a file for what
came of it. The answer is a line: the exit status as ``os.waitpid`` has it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import openai  # noqa: F401  imported here once, not in each fork
import sqlalchemy  # noqa: F401

from necrocode.agent_runner import LLMClient, LLMConfig, RunnerConfig, RunnerOrchestrator, TaskContext
from necrocode.agent_runner._clock import SYSTEM_CLOCK
from necrocode.agent_runner.wiring import build_services
from tests.faults.points import ROLES, Points


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _be_a_runner(json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


def _be_a_runner(order: dict[str, Any]) -> None:
    try:
        os.setsid()
        points = Points(
            order.get("dies_at", ""), dies_after=order.get("dies_after", 0), by=order.get("by", signal.SIGKILL)
        )
        points.install()
        results = _run(order, points)
        told = {"points": points.passed, "results": [json.loads(one.model_dump_json()) for one in results]}
        Path(order["told"]).write_text(json.dumps(told), encoding="utf-8")
    except BaseException:  # noqa: BLE001  a fork must never go back to the loop
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _run(order: dict[str, Any], points: Points) -> list[Any]:
    llm = LLMConfig(endpoint=order["model_url"], api_key="unused", model="scripted", retry_count=0)
    config = RunnerConfig(
        state_dir=Path(order["state"]),
        runner_id=order.get("runner_id"),
        llm=llm,
        sandbox="none",
        pool_size=order.get("pool_size", 1),
        slot_timeout_seconds=10,
    )
    own = build_services(config, SYSTEM_CLOCK, llm=LLMClient(llm))
    services = {name: points.watch(getattr(own, name), roles) for name, roles in ROLES.items()}
    with RunnerOrchestrator(config, **services) as orchestrator:
        if order["does"] == "resume":
            return list(orchestrator.resume_all())
        return [orchestrator.run(TaskContext(**order["task"]))]


if __name__ == "__main__":
    main()
