"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "archfront_studies",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("space_yaml", sa.Text(), nullable=False),
        sa.Column("space_name", sa.Text(), nullable=False),
        sa.Column("objectives", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("trials_wanted", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("ideal", sa.JSON()),
        sa.Column("reference", sa.JSON()),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("heartbeat", sa.DateTime(timezone=True)),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_archfront_studies"),
        sa.UniqueConstraint("name", name="uq_archfront_studies_name"),
    )
    op.create_table(
        "archfront_architectures",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("pattern", sa.Text(), nullable=False),
        sa.Column("d_model", sa.BigInteger(), nullable=False),
        sa.Column("num_layers", sa.BigInteger(), nullable=False),
        sa.Column("total_params", sa.BigInteger(), nullable=False),
        sa.Column("active_params", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_archfront_architectures"),
    )
    op.create_table(
        "archfront_trials",
        sa.Column("id", ID, nullable=False),
        sa.Column("study_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("architecture_key", sa.Text()),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("values", sa.JSON()),
        sa.Column("feasible", sa.Boolean()),
        sa.Column("violation", sa.JSON()),
        sa.Column("on_front", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("front_entered", sa.BigInteger()),
        sa.Column("front_left", sa.BigInteger()),
        sa.Column("stage", sa.Text()),
        sa.Column("kind", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("facts", sa.JSON()),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_archfront_trials"),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["archfront_studies.id"],
            name="fk_archfront_trials_study_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["architecture_key"],
            ["archfront_architectures.key"],
            name="fk_archfront_trials_architecture_key",
        ),
        sa.UniqueConstraint("study_id", "number", name="uq_archfront_trials_study_id_number"),
    )
    op.create_index(
        "ix_archfront_trials_architecture_key", "archfront_trials", ["architecture_key"]
    )
    op.create_index(
        "ix_archfront_trials_study_id_on_front_number",
        "archfront_trials",
        ["study_id", "on_front", "number"],
    )
    op.create_index("ix_archfront_trials_study_id_state", "archfront_trials", ["study_id", "state"])
    op.create_table(
        "archfront_measurements",
        sa.Column("id", ID, nullable=False),
        sa.Column("trial_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("workload", sa.Text()),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("low", sa.Double()),
        sa.Column("high", sa.Double()),
        sa.Column("provenance", sa.Text(), nullable=False),
        sa.Column("device", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_archfront_measurements"),
        sa.ForeignKeyConstraint(
            ["trial_id"],
            ["archfront_trials.id"],
            name="fk_archfront_measurements_trial_id",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_archfront_measurements_trial_id", "archfront_measurements", ["trial_id"])
    op.create_table(
        "archfront_fronts",
        sa.Column("id", ID, nullable=False),
        sa.Column("study_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("front_size", sa.BigInteger(), nullable=False),
        sa.Column("hypervolume", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_archfront_fronts"),
        sa.ForeignKeyConstraint(
            ["study_id"],
            ["archfront_studies.id"],
            name="fk_archfront_fronts_study_id",
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("study_id", "number", name="uq_archfront_fronts_study_id_number"),
    )
