"""Rungs of measurements, samplers of studies, and the present names of states and metrics."""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# Metrics of the proxy model; no other metric ends like them behind a prefix.
PROXY_METRICS = ("prefill_ms", "decode_ms", "step_ms", "parameters")
OLD_NAME = re.compile(rf"\b[a-z]+_(?=(?:{'|'.join(PROXY_METRICS)})\b)")

STUDIES = sa.table(
    "archfront_studies",
    sa.column("id", sa.BigInteger),
    sa.column("space_yaml", sa.Text),
    sa.column("objectives", sa.JSON),
)
TRIALS = sa.table(
    "archfront_trials",
    sa.column("id", sa.BigInteger),
    sa.column("state", sa.Text),
    sa.column("violation", sa.JSON(none_as_null=True)),
)
TIMINGS = sa.table(
    "archfront_timings",
    sa.column("key", sa.Text),
    sa.column("unit", sa.Text),
    sa.column("device", sa.Text),
    sa.column("point", sa.JSON),
    sa.column("facts", sa.JSON),
)
MEASUREMENTS = sa.table("archfront_measurements", sa.column("name", sa.Text))


def upgrade() -> None:
    op.add_column("archfront_measurements", sa.Column("rung", sa.BigInteger()))
    op.add_column(
        "archfront_studies",
        sa.Column("sampler", sa.Text(), nullable=False, server_default="tpe"),
    )
    op.drop_index("ix_archfront_timings_device_piece", "archfront_timings")
    op.execute("ALTER TABLE archfront_timings RENAME COLUMN piece TO unit")
    op.create_index("ix_archfront_timings_device_unit", "archfront_timings", ["device", "unit"])
    _rename_units()
    kept = ("running", "complete", "failed")
    op.execute(sa.update(TRIALS).where(TRIALS.c.state.not_in(kept)).values(state="rejected"))
    for name in PROXY_METRICS:
        op.execute(
            sa.update(MEASUREMENTS)
            .where(MEASUREMENTS.c.name.endswith(f"_{name}", autoescape=True))
            .values(name=f"proxy_{name}")
        )
    _change(STUDIES, "space_yaml", _space)
    _change(STUDIES, "objectives", _objectives)
    _change(TRIALS, "violation", _violation)


def _rename_units() -> None:
    """Give timings of embedding and head their present unit, and the key that follows from it."""
    connection = op.get_bind()
    old = sa.select(TIMINGS).where(TIMINGS.c.unit.startswith("ends:"))
    for key, unit, device, point, facts in connection.execute(old).all():
        unit = "embedding_and_head:" + unit.removeprefix("ends:")
        identity = json.dumps([unit, device, point, facts], sort_keys=True)
        new_key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        connection.execute(
            sa.update(TIMINGS).where(TIMINGS.c.key == key).values(key=new_key, unit=unit)
        )


def _change(table: sa.TableClause, name: str, change: Callable[[Any], Any]) -> None:
    """Replace the values of a column where `change` gives another."""
    connection = op.get_bind()
    for row_id, value in connection.execute(sa.select(table.c.id, table.c[name])).all():
        changed = value if value is None else change(value)
        if changed != value:
            connection.execute(sa.update(table).where(table.c.id == row_id).values({name: changed}))


def _metric(label: str) -> str:
    return OLD_NAME.sub("proxy_", label)


def _space(text: str) -> str:
    text = re.sub(r"^(['\"]?)laws\1(\s*:)", r"architecture_constraints\2", text, flags=re.MULTILINE)
    return _metric(text)


def _objectives(plain: list[dict[str, str]]) -> list[dict[str, str]]:
    return [objective | {"label": _metric(objective["label"])} for objective in plain]


def _violation(plain: dict[str, float]) -> dict[str, float]:
    return {_metric(label): excess for label, excess in plain.items()}
