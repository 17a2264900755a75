"""necrocode: LLM coding tasks with the reliability of a CI runner.

The SDK is :mod:`necrocode.agent_runner`; importing this package has no side effects.
"""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    import necrocode.agent_runner.removed as removed  # noqa: PLC0415, PLR0402  for a name that is not there

    raise removed.missing(__name__, name, importing=removed.is_from_importing())
