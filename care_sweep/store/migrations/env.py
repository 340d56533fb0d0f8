"""Runs migrations on the connection, and in the transaction, that `store.database` hands over."""

from alembic import context

from care_sweep.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
