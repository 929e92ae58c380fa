"""Run by Alembic; database.py says with which connection and for which tables."""

from alembic import context

context.configure(**context.config.attributes["configure"])
with context.begin_transaction():
    context.run_migrations()
