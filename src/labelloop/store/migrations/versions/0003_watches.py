"""What is known of each annotation, and the projects that are watched."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "annotation_states",
        sa.Column("project_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("task_id", sa.BigInteger),
        sa.Column("updated_at", MOMENT),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("heard_at", MOMENT, nullable=False),
    )
    op.create_index("ix_annotation_states_heard", "annotation_states", ["project_id", "heard_at"])
    op.create_table(
        "watches",
        sa.Column("project_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("label_studio", sa.String(500), primary_key=True),
        sa.Column("kept", sa.Boolean, nullable=False),
        sa.Column("cursor", MOMENT),
        sa.Column("version", sa.String(200), nullable=False),
        sa.Column("job_id", sa.String(40)),
        sa.Column("holder", sa.String(100)),
        sa.Column("held_until_s", sa.Float, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
    )
