"""Alembic migrations of the task registry's database; applied by :mod:`necrocode.agent_runner.clients._registry_upgrade`."""
