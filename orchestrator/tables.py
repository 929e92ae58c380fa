"""The tables of a store. A change of them needs the next migration and a new SCHEMA."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ..profilers.report import FailureKind, Provenance

PREFIX = "archfront_"  # others may have tables in the same database
VERSION_TABLE = "archfront_schema"
SCHEMA = "0003"

StudyStatus = Literal["running", "finished", "interrupted"]
TrialState = Literal["running", "complete", "failed", "rejected"]


class UtcDateTime(TypeDecorator[datetime]):
    """A time, aware in Python and UTC in the database: SQLite keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


class Base(DeclarativeBase):
    """Base of the tables: names of constraints, types of columns."""

    # Alembic can only alter a constraint that has a name.
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    # JSON, not JSONB, on PostgreSQL too: it keeps the order of keys, and no query looks inside.
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's own name and form)
        int: BigInteger(),
        float: Double(),
        str: Text(),
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
    }


# SQLite counts up only a column that it calls INTEGER.
Id = Annotated[int, mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)]
StudyId = Annotated[
    int, mapped_column(BigInteger(), ForeignKey(f"{PREFIX}studies.id", ondelete="CASCADE"))
]


class StudyRow(Base):
    """A search; see `Study` in store.py."""

    __tablename__ = f"{PREFIX}studies"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    space_yaml: Mapped[str]
    space_name: Mapped[str]
    objectives: Mapped[list[Any]]  # [{"label": "decode_ms@chat-4k", "better": "lower"}, ...]
    seed: Mapped[int]
    sampler: Mapped[str] = mapped_column(server_default="tpe")  # name in samplers/registry.py
    target: Mapped[str]
    trials_wanted: Mapped[int]
    status: Mapped[StudyStatus] = mapped_column(Text())
    ideal: Mapped[list[Any] | None]  # the hypervolume's box, fixed once
    reference: Mapped[list[Any] | None]
    version: Mapped[str]  # of archfront
    owner: Mapped[str | None]  # the driver that holds the study
    heartbeat: Mapped[datetime | None]
    created: Mapped[datetime]
    updated: Mapped[datetime]


class ArchitectureRow(Base):
    """An architecture, stored once for all studies."""

    __tablename__ = f"{PREFIX}architectures"

    key: Mapped[str] = mapped_column(primary_key=True)
    document: Mapped[dict[str, Any]]  # Architecture.plain()
    pattern: Mapped[str]
    d_model: Mapped[int]
    num_layers: Mapped[int]
    total_params: Mapped[int]
    active_params: Mapped[int]


class TrialRow(Base):
    """A candidate in a study; see `Trial` in store.py."""

    __tablename__ = f"{PREFIX}trials"

    id: Mapped[Id]
    study_id: Mapped[StudyId]
    number: Mapped[int]
    state: Mapped[TrialState] = mapped_column(Text())
    architecture_key: Mapped[str | None] = mapped_column(
        ForeignKey(ArchitectureRow.key), index=True
    )
    parameters: Mapped[dict[str, Any]]  # what the sampler suggested
    values: Mapped[list[Any] | None]  # in the order of the study's objectives
    feasible: Mapped[bool | None]
    violation: Mapped[dict[str, Any] | None]  # constraint: value minus bound
    on_front: Mapped[bool] = mapped_column(server_default=false())
    front_entered: Mapped[int | None]  # its own number, once it was on the front
    front_left: Mapped[int | None]  # number of the trial that dominates it
    stage: Mapped[str | None]
    kind: Mapped[FailureKind | None] = mapped_column(Text())
    reason: Mapped[str | None]  # why it failed or was rejected
    facts: Mapped[dict[str, Any] | None]
    started: Mapped[datetime]
    ended: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        Index(None, "study_id", "on_front", "number"),
        Index(None, "study_id", "state"),
    )


class MeasurementRow(Base):
    """A measurement of a trial, at a rung or without one."""

    __tablename__ = f"{PREFIX}measurements"

    id: Mapped[Id]
    trial_id: Mapped[int] = mapped_column(
        BigInteger(), ForeignKey(TrialRow.id, ondelete="CASCADE"), index=True
    )
    name: Mapped[str]
    workload: Mapped[str | None]
    value: Mapped[float]
    low: Mapped[float | None]
    high: Mapped[float | None]
    provenance: Mapped[Provenance] = mapped_column(Text())
    device: Mapped[str | None]
    rung: Mapped[int | None]  # index in the plan; None for what training does not change


class FrontRow(Base):
    """The front after each completed trial, in the order of completion."""

    __tablename__ = f"{PREFIX}fronts"

    id: Mapped[Id]
    study_id: Mapped[StudyId]
    number: Mapped[int]
    front_size: Mapped[int]
    hypervolume: Mapped[float | None]  # None until the study has its box

    __table_args__ = (UniqueConstraint("study_id", "number"),)


class TimingRow(Base):
    """A timing of a block, embedding and head, or a model; see profilers/timing/measure.py."""

    __tablename__ = f"{PREFIX}timings"

    key: Mapped[str] = mapped_column(primary_key=True)  # of the unit, point and software
    unit: Mapped[str]
    device: Mapped[str]
    point: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    low: Mapped[float]
    high: Mapped[float]
    samples: Mapped[int]
    drift: Mapped[float]
    peak_bytes: Mapped[int | None]
    facts: Mapped[dict[str, Any]]
    measured: Mapped[datetime]

    __table_args__ = (Index(None, "device", "unit"),)


class CalibrationRow(Base):
    """The cost model, fitted to timings of one device."""

    __tablename__ = f"{PREFIX}calibrations"

    device: Mapped[str] = mapped_column(primary_key=True)
    document: Mapped[dict[str, Any]]
    measured: Mapped[datetime]
