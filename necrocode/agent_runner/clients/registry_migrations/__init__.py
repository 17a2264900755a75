"""Alembic migrations of the task registry's database; ``_registry_upgrade.py`` applies them."""
