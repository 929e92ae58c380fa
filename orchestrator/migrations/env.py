"""Alembic environment; database.py provides the connection and the tables."""

from alembic import context

context.configure(**context.config.attributes["configure"])
with context.begin_transaction():
    context.run_migrations()
