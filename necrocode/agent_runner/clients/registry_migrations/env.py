"""What alembic runs: the caller's connection, and with it the caller's transaction and lock."""

from alembic import context

from necrocode.agent_runner.clients.registry_schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
