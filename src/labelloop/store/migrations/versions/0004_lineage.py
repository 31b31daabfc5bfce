"""Where trained versions come from, and the history of each project's pointer."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("versions", sa.Column("trained", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "moves",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("project_id", sa.BigInteger, nullable=False),
        sa.Column("source", sa.String(200)),
        sa.Column("target", sa.String(200), nullable=False),
        sa.Column("back", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("by", sa.String(100), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
    )
    op.create_index("ix_moves_project_id", "moves", ["project_id"])
    op.create_table(
        "lineage",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("project_id", sa.BigInteger),
        sa.Column("parent", sa.String(200), nullable=False),
        sa.Column("manifest", sa.String(64), nullable=False),
        sa.Column("trainer", sa.String(100), nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("verdict", sa.JSON, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("by", sa.String(100), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
    )
    op.create_index("ix_lineage_project_id", "lineage", ["project_id"])
