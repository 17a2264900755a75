"""necrocode: LLM coding tasks with the reliability of a CI runner.

The SDK is :mod:`necrocode.agent_runner`; importing this package has no side effects.
"""

__version__ = "0.1.0"
