"""Timings, and calibrations of devices."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "archfront_timings",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("piece", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("point", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False),
        sa.Column("high", sa.Double(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("drift", sa.Double(), nullable=False),
        sa.Column("peak_bytes", sa.BigInteger()),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("measured", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_archfront_timings"),
    )
    op.create_index("ix_archfront_timings_device_piece", "archfront_timings", ["device", "piece"])
    op.create_table(
        "archfront_calibrations",
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("measured", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("device", name="pk_archfront_calibrations"),
    )
