"""When each part of a film was kept: how fast a job is in the film that it is at."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    # parts that were kept before count as old: they say how far a job is, and not how fast
    op.add_column("film_parts", sa.Column("kept_s", sa.Float, nullable=False, server_default="0"))
