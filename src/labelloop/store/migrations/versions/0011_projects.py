"""Which project a number means, and what a server answers it with by default."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("project_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("made_s", sa.BigInteger, nullable=False),
        sa.Column("label_studio", sa.String(500), nullable=False),
        sa.Column("served_by", sa.String(200), nullable=False),
    )
