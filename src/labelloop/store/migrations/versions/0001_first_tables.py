"""First tables: model versions, bindings, connections, events, failures."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "versions",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("artifact", sa.String(500), nullable=False),
        sa.Column("card", sa.JSON, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.UniqueConstraint("name", "digest"),
    )
    op.create_table(
        "bindings",
        sa.Column("project_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("number", sa.Integer),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("moved_at", MOMENT, nullable=False),
    )
    op.create_table(
        "connections",
        sa.Column("url", sa.String(500), primary_key=True),
        sa.Column("token", sa.String(2000), nullable=False),
        sa.Column("saved_at", MOMENT, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("action", sa.String(100), nullable=False),
        sa.Column("project_id", sa.BigInteger),
        sa.Column("task_ids", sa.JSON, nullable=False),
        sa.Column("annotation_ids", sa.JSON, nullable=False),
        sa.Column("handled_at", MOMENT),
    )
    op.create_index("ix_events_handled_at", "events", ["handled_at"])
    op.create_table(
        "failures",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("project_id", sa.BigInteger),
        sa.Column("task_id", sa.BigInteger),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("code", sa.String(50), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_index("ix_failures_project_id", "failures", ["project_id"])
