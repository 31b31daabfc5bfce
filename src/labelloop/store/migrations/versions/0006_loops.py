"""Learning loops: which projects learn by themselves, and the runs that came of it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "loops",
        sa.Column("project_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("label_studio", sa.String(500), nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("seen_event", sa.BigInteger, nullable=False),
        sa.Column("run_at", MOMENT),
        sa.Column("changed_at", MOMENT, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("job_id", sa.String(40), primary_key=True),
        sa.Column("project_id", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("stage", sa.String(20), nullable=False),
        sa.Column("trainer", sa.String(100), nullable=False),
        sa.Column("base", sa.String(200), nullable=False),
        sa.Column("candidate", sa.String(200), nullable=False),
        sa.Column("manifest", sa.String(64), nullable=False),
        sa.Column("counts", sa.JSON, nullable=False),
        sa.Column("curve", sa.JSON, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("outcome", sa.String(20)),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT),
    )
    op.create_index("ix_runs_project_id", "runs", ["project_id"])
