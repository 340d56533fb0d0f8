"""Where an attempt ran, and what operators watch of a sweep: its images and the seconds of its search.

Frozen as it was released: later migrations change it, this file never does.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("search_seconds", sa.Float, nullable=False, server_default="0"))
    op.add_column("sweeps", sa.Column("num_images", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("attempts", sa.Column("place", sa.JSON))
