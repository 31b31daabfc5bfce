"""Pages of a job belong to workers, so that several can share it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("job_pages", sa.Column("owner", sa.String(100)))
