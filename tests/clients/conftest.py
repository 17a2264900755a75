"""What the clients' tests share: a clock, and a client of models that has met no endpoint yet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from necrocode.agent_runner.clients import llm_openai
from tests.support.clocks import FakeClock


@pytest.fixture(autouse=True)
def _no_memory() -> Iterator[None]:
    llm_openai._manners.clear()
    yield
    llm_openai._manners.clear()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
