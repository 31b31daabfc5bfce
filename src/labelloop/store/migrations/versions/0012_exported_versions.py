"""Which version a file was exported from: what a later training goes on from, where the file cannot be trained."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("lineage", sa.Column("source", sa.String(200), nullable=False, server_default=""))
