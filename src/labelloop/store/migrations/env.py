"""Alembic's entry: runs the migrations in the transaction that `store/db` hands over."""

from alembic import context

from labelloop.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
