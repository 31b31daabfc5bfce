"""Alembic's entry: runs the migrations on the engine that `store/db` hands over."""

from alembic import context

from labelloop.store.schema import metadata

with context.config.attributes["engine"].begin() as connection:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
