"""The store of searches: studies, trials, measurements, fronts, timings; the project's only SQL.

    with open_store("sqlite:///runs.db") as store:
        store.create_study(name="first", objectives=[...], ...)
        store.claim("first", owner)
        store.begin_trial("first", 0, architecture, {"d_model": 512})
        store.report_trial("first", 0, report_of_a_rung)
        store.finish_trial("first", 0, report, values=[0.9, 31.0], feasible=True, violation={})
        store.front("first")

A study has one writer, the driver that claimed it. Every write is one transaction: once the call
has returned, the row survives the driver. Others may read meanwhile. Results are the records below.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, Self

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import aliased

from ..profilers.report import Failure, FailureKind, Measurement, Provenance, Report
from ..profilers.timing.measure import Timed
from ..search_space.accounting import parameters as count_parameters
from ..search_space.architecture import Architecture
from ..search_space.document import InputError, nearest
from ..search_space.operators import Point
from . import pareto
from .database import Database, open_database
from .tables import (
    ArchitectureRow,
    CalibrationRow,
    FrontRow,
    MeasurementRow,
    StudyRow,
    StudyStatus,
    TimingRow,
    TrialRow,
    TrialState,
)

LEASE = timedelta(seconds=60)
# Feasible trials after which the box of a study's hypervolume is fixed; a study that finishes with
# fewer gets its box then. Few enough to show early progress, enough to know the objectives' spans.
BOX_TRIALS = 10
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective of a study: a metric's label (`decode_ms@chat-4k`) and its better side."""

    label: str
    better: Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """One search: its space, its settings and its state.

    `ideal` and `reference` are the corners of the box of its hypervolume, None until BOX_TRIALS
    feasible trials are complete. `counts` are trials by state, `sampler` is a name of
    samplers/registry.py.
    """

    name: str
    space_yaml: str
    space_name: str
    objectives: tuple[Objective, ...]
    seed: int
    sampler: str
    target: str
    trials_wanted: int
    status: StudyStatus
    ideal: tuple[float, ...] | None
    reference: tuple[float, ...] | None
    version: str
    owner: str | None
    heartbeat: datetime | None
    created: datetime
    updated: datetime
    counts: Mapping[TrialState, int]
    front_size: int

    @property
    def signs(self) -> tuple[int, ...]:
        """1 per objective where lower is better, -1 where higher is, as in pareto.py."""
        return _signs(self.objectives)

    @property
    def alive(self) -> bool:
        """Whether a driver holds the study and has renewed its claim within LEASE."""
        return self.heartbeat is not None and datetime.now(UTC) - self.heartbeat < LEASE


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One candidate in one study, with a summary of its architecture.

    `key` is its architecture's, None where its parameters violate the space. `values` are in the
    order of the study's objectives; `violation` is, by constraint, how far the value is beyond the
    bound. It was on the front from its own completion (`front_entered`) until that of trial
    `front_left`. `reason` says why it failed (`stage`, `kind`) or was rejected: "infeasible: ..."
    or "duplicate: ...".
    """

    study: str
    number: int
    state: TrialState
    key: str | None
    pattern: str | None
    d_model: int | None
    num_layers: int | None
    total_params: int | None
    active_params: int | None
    parameters: Mapping[str, Any]
    values: Sequence[float] | None
    feasible: bool | None
    violation: Mapping[str, float] | None
    on_front: bool
    front_entered: int | None
    front_left: int | None
    stage: str | None
    kind: FailureKind | None
    reason: str | None
    started: datetime
    ended: datetime | None


class TrialMeasurement(NamedTuple):
    """A measurement with its trial: a row for a data frame."""

    number: int
    key: str
    name: str
    workload: str | None
    value: float
    low: float | None
    high: float | None
    provenance: Provenance
    device: str | None
    rung: int | None


class FrontStep(NamedTuple):
    """The front after trial `number` completed; its hypervolume, once the study has its box."""

    number: int
    front_size: int
    hypervolume: float | None
    ended: datetime


def open_store(url: str, *, readonly: bool = False, create: bool = True) -> "Store":
    """Open `sqlite:///PATH` or `postgresql://USER@HOST/DATABASE`.

    A store that does not exist is created, unless `create` is false; an older one is upgraded. With
    `readonly` nothing is created, upgraded or locked. Raises InputError.
    """
    return Store(open_database(url, readonly=readonly, create=create and not readonly))


class Store:
    """Studies and timings in a database. Close it, or use it as a context.

    Every method raises InputError where the database fails, and for a study that does not exist.
    Methods that write a study raise it too where another driver holds the study.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._owners: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def label(self) -> str:
        """The store's URL without password, for messages and commands to type next."""
        return self._database.url

    def close(self) -> None:
        """Close the connections."""
        self._database.engine.dispose()

    # Studies

    def create_study(
        self,
        *,
        name: str,
        space_yaml: str,
        space_name: str,
        objectives: Sequence[Objective],
        seed: int,
        sampler: str,
        target: str,
        trials_wanted: int,
    ) -> Study:
        """Add a study, not claimed yet. Raises InputError for a name that is taken or malformed."""
        if not NAME.fullmatch(name):
            raise InputError(
                "a study's name has 1 to 63 lower-case letters, digits and dashes, no dash first, "
                f"got {name!r}"
            )
        now = datetime.now(UTC)
        row = insert(StudyRow).values(
            name=name,
            space_yaml=space_yaml,
            space_name=space_name,
            objectives=[{"label": o.label, "better": o.better} for o in objectives],
            seed=seed,
            sampler=sampler,
            target=target,
            trials_wanted=trials_wanted,
            status="running",
            version=version("archfront"),
            created=now,
            updated=now,
        )
        try:
            with self._database.writing() as connection:
                connection.execute(row)
        except IntegrityError:
            raise InputError(
                f"study {name!r} exists already: resume it, or choose another name"
            ) from None
        return self.study(name)

    def studies(self) -> list[Study]:
        """Every study, the newest first."""
        with self._database.reading() as connection:
            return _studies(connection)

    def study(self, name: str) -> Study:
        """The study of a name."""
        with self._database.reading() as connection:
            return _studies(connection, StudyRow.id == _study_id(connection, name))[0]

    def claim(self, study: str, owner: str, *, dead: str | None = None) -> None:
        """Become the study's driver as `owner`, or renew the claim: call again well within LEASE.

        Every write renews the claim too. A driver that has been silent for LEASE is replaced, one
        whose owner the caller knows to be `dead` at once; a later write of its own fails. Raises
        InputError while another driver is alive.
        """
        now = datetime.now(UTC)
        free = or_(
            StudyRow.owner.is_(None),
            StudyRow.owner.in_([owner, dead or owner]),
            StudyRow.heartbeat <= now - LEASE,
        )
        with self._database.writing() as connection:
            claimed = connection.execute(
                update(StudyRow)
                .where(StudyRow.name == study, free)
                .values(owner=owner, heartbeat=now)
            )
            if not claimed.rowcount:
                raise _held_by_another(connection, study)
        self._owners[study] = owner

    def release(self, study: str) -> None:
        """Give up this store's claim on the study, if it has one."""
        owner = self._owners.pop(study, None)
        with self._database.writing() as connection:
            connection.execute(
                update(StudyRow)
                .where(StudyRow.name == study, StudyRow.owner == owner)
                .values(owner=None, heartbeat=None)
            )

    def set_status(self, study: str, status: StudyStatus) -> None:
        """Set the status; a study that finishes without a box gets it."""
        with self._database.writing() as connection:
            held = self._held(connection, study)
            connection.execute(update(StudyRow).where(StudyRow.id == held.id).values(status=status))
            if status == "finished" and not held.box:
                _fix_box(connection, held, at_least=1)

    def set_trials_wanted(self, study: str, trials: int) -> None:
        """Set the total number of trials to finish."""
        with self._database.writing() as connection:
            held = self._held(connection, study)
            connection.execute(
                update(StudyRow).where(StudyRow.id == held.id).values(trials_wanted=trials)
            )

    # Trials, written by the driver

    def next_number(self, study: str) -> int:
        """The number of the next trial: one above the highest, 0 in a new study."""
        with self._database.reading() as connection:
            study_id = _study_id(connection, study)
            last = connection.scalar(
                select(func.max(TrialRow.number)).where(TrialRow.study_id == study_id)
            )
            return 0 if last is None else last + 1

    def begin_trial(
        self, study: str, number: int, architecture: Architecture, parameters: Mapping[str, Any]
    ) -> None:
        """Record a trial as running, with the parameters that the sampler suggested."""
        with self._database.writing() as connection:
            connection.execute(
                insert(TrialRow).values(
                    study_id=self._held(connection, study).id,
                    number=number,
                    state="running",
                    architecture_key=_add_architecture(connection, architecture),
                    parameters=dict(parameters),
                    started=datetime.now(UTC),
                )
            )

    def reject_trial(
        self,
        study: str,
        number: int,
        parameters: Mapping[str, Any],
        reason: str,
        architecture: Architecture | None,
    ) -> None:
        """Record a trial that was not run, and why.

        `architecture` is None where the parameters violate the space.
        """
        now = datetime.now(UTC)
        with self._database.writing() as connection:
            connection.execute(
                insert(TrialRow).values(
                    study_id=self._held(connection, study).id,
                    number=number,
                    state="rejected",
                    architecture_key=architecture and _add_architecture(connection, architecture),
                    parameters=dict(parameters),
                    reason=_storable(reason),
                    started=now,
                    ended=now,
                )
            )

    def report_trial(self, study: str, number: int, report: Report) -> None:
        """Record what a running trial measured at a rung, in place of an earlier record of it.

        Every measurement has the report's rung. Without effect where the trial is not running.
        """
        with self._database.writing() as connection:
            trial_id = connection.scalar(
                select(TrialRow.id).where(
                    TrialRow.study_id == self._held(connection, study).id,
                    TrialRow.number == number,
                    TrialRow.state == "running",
                )
            )
            if trial_id is not None:
                _add_measurements(connection, trial_id, report)

    def fail_trial(self, study: str, number: int, failure: Failure) -> None:
        """End a running trial as failed. What it measured at rungs stays."""
        with self._database.writing() as connection:
            _end(
                connection,
                self._held(connection, study).id,
                number,
                failure.key,
                state="failed",
                stage=failure.stage,
                kind=failure.kind,
                reason=_storable(failure.reason),
            )

    def finish_trial(
        self,
        study: str,
        number: int,
        report: Report,
        values: Sequence[float],
        feasible: bool,
        violation: Mapping[str, float],
    ) -> None:
        """End a running trial with its last report, and update the front and its hypervolume.

        `values` are in the order of the study's objectives; only a feasible trial can enter the
        front. Raises ValueError for a number that is not finite.
        """
        numbers = [(m.label, n) for m in report.measurements for n in (m.value, m.low, m.high)]
        numbers += [*violation.items(), *(("objective", value) for value in values)]
        for label, value in numbers:
            if value is not None and not math.isfinite(value):
                raise ValueError(f"trial {number}: {label} must be finite, got {value}")
        with self._database.writing() as connection:
            held = self._held(connection, study)
            trial_id = _end(
                connection,
                held.id,
                number,
                report.key,
                state="complete",
                values=list(values),
                feasible=feasible,
                violation=dict(violation),
                facts=report.facts,
            )
            _add_measurements(connection, trial_id, report)
            if feasible:
                _update_front(connection, held, number, values)
            front = list(_front(connection, held.id).values())
            volume = held.box and pareto.hypervolume(front, held.signs, *held.box)
            connection.execute(
                insert(FrontRow).values(
                    study_id=held.id, number=number, front_size=len(front), hypervolume=volume
                )
            )
            if feasible and not held.box:
                _fix_box(connection, held, at_least=BOX_TRIALS)

    def drop_running(self, study: str) -> list[Trial]:
        """Delete the trials that a dead driver left running, and return them.

        Begin each again under its number.
        """
        with self._database.writing() as connection:
            study_id = self._held(connection, study).id
            running = _trials(
                connection, TrialRow.study_id == study_id, TrialRow.state == "running"
            )
            connection.execute(
                delete(TrialRow).where(TrialRow.study_id == study_id, TrialRow.state == "running")
            )
            return running

    # Queries

    def trials(self, study: str) -> list[Trial]:
        """Every trial of the study by number."""
        with self._database.reading() as connection:
            return _trials(connection, TrialRow.study_id == _study_id(connection, study))

    def front(self, study: str) -> list[Trial]:
        """The Pareto front: feasible trials that no other dominates, by number."""
        with self._database.reading() as connection:
            return _trials(
                connection, TrialRow.study_id == _study_id(connection, study), TrialRow.on_front
            )

    def trials_of(self, key: str, study: str | None = None) -> list[Trial]:
        """The trials of one architecture, in all studies or in the one named.

        `key` may be a unique prefix of the architecture's key. Raises InputError for an unknown or
        ambiguous one.
        """
        with self._database.reading() as connection:
            where = [TrialRow.architecture_key == _full_key(connection, key)]
            if study is not None:
                where.append(TrialRow.study_id == _study_id(connection, study))
            return _trials(connection, *where)

    def architecture(self, key: str) -> Architecture:
        """The architecture of a key or of a unique prefix of it.

        Raises InputError unless exactly one key begins with `key`.
        """
        with self._database.reading() as connection:
            document = connection.scalar(
                select(ArchitectureRow.document).where(
                    ArchitectureRow.key == _full_key(connection, key)
                )
            )
        return Architecture.model_validate(document)

    def report(self, study: str, number: int) -> Report | None:
        """The last report of a complete trial; None for a trial without one."""
        with self._database.reading() as connection:
            trial: Any = connection.execute(
                select(TrialRow.id, TrialRow.architecture_key, TrialRow.facts).where(
                    TrialRow.study_id == _study_id(connection, study),
                    TrialRow.number == number,
                    TrialRow.state == "complete",
                )
            ).one_or_none()
            if trial is None:
                return None
            trial_id, key, facts = trial
            rows = connection.execute(
                select(*_MEASUREMENT)
                .where(MeasurementRow.trial_id == trial_id, _OF_LAST_REPORT)
                .order_by(MeasurementRow.id)
            )
            measurements = tuple(Measurement(**row._mapping) for row in rows)
        rung = max((m.rung for m in measurements if m.rung is not None), default=0)
        return Report(key=key, measurements=measurements, facts=facts, rung=rung)

    def measurements(self, study: str) -> list[TrialMeasurement]:
        """The measurements of every complete trial's last report, by trial, in its order."""
        return self._measurements(study, TrialRow.state == "complete", _OF_LAST_REPORT)

    def rung_measurements(self, study: str) -> list[TrialMeasurement]:
        """The measurements of every trial at every rung, by trial and in the order of reports."""
        return self._measurements(study, MeasurementRow.rung.is_not(None))

    def _measurements(self, study: str, *where: Any) -> list[TrialMeasurement]:
        with self._database.reading() as connection:
            rows = connection.execute(
                select(TrialRow.number, TrialRow.architecture_key, *_MEASUREMENT)
                .join(TrialRow, TrialRow.id == MeasurementRow.trial_id)
                .where(TrialRow.study_id == _study_id(connection, study), *where)
                .order_by(TrialRow.number, MeasurementRow.id)
            )
            return [TrialMeasurement._make(row) for row in rows]

    def front_now(self, study: str) -> tuple[int, float | None]:
        """The front's size and hypervolume after the latest completed trial."""
        with self._database.reading() as connection:
            last = connection.execute(
                select(FrontRow.front_size, FrontRow.hypervolume)
                .where(FrontRow.study_id == _study_id(connection, study))
                .order_by(FrontRow.id.desc())
                .limit(1)
            ).one_or_none()
        return (0, None) if last is None else (last.front_size, last.hypervolume)

    def hypervolume_history(self, study: str) -> list[FrontStep]:
        """The front after each completed trial, in the order of completion."""
        with self._database.reading() as connection:
            rows = connection.execute(
                select(FrontRow.number, FrontRow.front_size, FrontRow.hypervolume, TrialRow.ended)
                .join(TrialRow, _SAME_TRIAL)
                .where(FrontRow.study_id == _study_id(connection, study))
                .order_by(FrontRow.id)
            )
            return [FrontStep._make(row) for row in rows]

    def keep_timing(self, timed: Timed) -> None:
        """Store a timing, in place of an earlier one of the same key."""
        values = asdict(timed) | {"point": asdict(timed.point), "measured": datetime.now(UTC)}
        with self._database.writing() as connection:
            connection.execute(delete(TimingRow).where(TimingRow.key == timed.key))
            connection.execute(insert(TimingRow).values(key=timed.key, **values))

    def timings(self, device: str) -> list[Timed]:
        """The timings of a device, the newest last. Raises InputError for a damaged row."""
        columns = [getattr(TimingRow, field.name) for field in fields(Timed)]
        with self._database.reading() as connection:
            rows = connection.execute(
                select(TimingRow.key, *columns)
                .where(TimingRow.device == device)
                .order_by(TimingRow.measured)
            ).all()
        return [_timed(**row._mapping) for row in rows]

    def keep_calibration(self, device: str, document: dict[str, Any]) -> None:
        """Store the calibration of a device, in place of an earlier one."""
        with self._database.writing() as connection:
            connection.execute(delete(CalibrationRow).where(CalibrationRow.device == device))
            connection.execute(
                insert(CalibrationRow).values(
                    device=device, document=document, measured=datetime.now(UTC)
                )
            )

    def calibrations(self) -> dict[str, dict[str, Any]]:
        """The calibration of each device, by its name."""
        with self._database.reading() as connection:
            rows = connection.execute(select(CalibrationRow.device, CalibrationRow.document)).all()
        return dict(rows)

    def _held(self, connection: Connection, study: str) -> "_Held":
        """The study, its heartbeat renewed. Raises InputError where another driver holds it."""
        owner, now = self._owners.get(study), datetime.now(UTC)
        row = connection.execute(
            update(StudyRow)
            .where(StudyRow.name == study, StudyRow.owner == owner)
            .values(updated=now, heartbeat=now if owner else None)
            .returning(StudyRow.id, StudyRow.objectives, StudyRow.ideal, StudyRow.reference)
        ).one_or_none()
        if row is None:
            raise _held_by_another(connection, study)
        box = (row.ideal, row.reference) if row.ideal and row.reference else None
        return _Held(id=row.id, signs=_signs(_objectives(row.objectives)), box=box)


class _Held(NamedTuple):
    id: int
    signs: tuple[int, ...]
    box: tuple[list[float], list[float]] | None


_SAME_TRIAL = and_(TrialRow.study_id == FrontRow.study_id, TrialRow.number == FrontRow.number)
_MEASUREMENT = (
    MeasurementRow.name,
    MeasurementRow.workload,
    MeasurementRow.value,
    MeasurementRow.low,
    MeasurementRow.high,
    MeasurementRow.provenance,
    MeasurementRow.device,
    MeasurementRow.rung,
)
_LATER = aliased(MeasurementRow)
# Measurements of a trial's highest rung, and those that belong to none.
_OF_LAST_REPORT = or_(
    MeasurementRow.rung.is_(None),
    MeasurementRow.rung
    == select(func.max(_LATER.rung))
    .where(_LATER.trial_id == MeasurementRow.trial_id)
    .scalar_subquery(),
)


def _objectives(plain: list[dict[str, Any]]) -> tuple[Objective, ...]:
    return tuple(Objective(**objective) for objective in plain)


def _signs(objectives: Sequence[Objective]) -> tuple[int, ...]:
    return tuple(1 if o.better == "lower" else -1 for o in objectives)


def _study_id(connection: Connection, name: str) -> int:
    found = connection.scalar(select(StudyRow.id).where(StudyRow.name == name))
    if found is None:
        names = connection.scalars(select(StudyRow.name).order_by(StudyRow.name)).all()
        raise InputError(f"no study {name!r}{nearest(name, names) or '; the store has none yet'}")
    return found


def _held_by_another(connection: Connection, study: str) -> InputError:
    row = connection.execute(
        select(StudyRow.owner, StudyRow.heartbeat).where(
            StudyRow.id == _study_id(connection, study)
        )
    ).one()
    if row.owner is None:
        return InputError(f"study {study!r} is no longer held by this driver: claim it again")
    silent = int((datetime.now(UTC) - row.heartbeat).total_seconds())
    return InputError(
        f"study {study!r} is held by another driver, {row.owner}, silent for {silent} s: stop it, "
        f"or if it is dead try again once it has been silent for {LEASE.seconds} s"
    )


def _studies(connection: Connection, *where: Any) -> list[Study]:
    trials = select(TrialRow.study_id, func.count()).join(
        StudyRow, StudyRow.id == TrialRow.study_id
    )
    by_state = (
        trials.add_columns(TrialRow.state).where(*where).group_by(TrialRow.study_id, TrialRow.state)
    )
    counts: dict[int, dict[TrialState, int]] = {}
    for study_id, count, state in connection.execute(by_state):
        counts.setdefault(study_id, {})[state] = count
    on_front = trials.where(*where, TrialRow.on_front).group_by(TrialRow.study_id)
    fronts = dict(connection.execute(on_front).all())
    query = select(StudyRow).where(*where).order_by(StudyRow.created.desc(), StudyRow.id.desc())
    studies: list[Study] = []
    for row in connection.execute(query):
        fields = dict(row._mapping)
        study_id = fields.pop("id")
        fields |= {
            "objectives": _objectives(row.objectives),
            "ideal": row.ideal and tuple(row.ideal),
            "reference": row.reference and tuple(row.reference),
        }
        studies.append(
            Study(**fields, counts=counts.get(study_id, {}), front_size=fronts.get(study_id, 0))
        )
    return studies


_TRIAL = {
    "study": StudyRow.name,
    "number": TrialRow.number,
    "state": TrialRow.state,
    "key": TrialRow.architecture_key,
    "pattern": ArchitectureRow.pattern,
    "d_model": ArchitectureRow.d_model,
    "num_layers": ArchitectureRow.num_layers,
    "total_params": ArchitectureRow.total_params,
    "active_params": ArchitectureRow.active_params,
    "parameters": TrialRow.parameters,
    "values": TrialRow.values,
    "feasible": TrialRow.feasible,
    "violation": TrialRow.violation,
    "on_front": TrialRow.on_front,
    "front_entered": TrialRow.front_entered,
    "front_left": TrialRow.front_left,
    "stage": TrialRow.stage,
    "kind": TrialRow.kind,
    "reason": TrialRow.reason,
    "started": TrialRow.started,
    "ended": TrialRow.ended,
}


def _trials(connection: Connection, *where: Any) -> list[Trial]:
    query = (
        select(*(column.label(name) for name, column in _TRIAL.items()))
        .select_from(TrialRow)
        .join(StudyRow, StudyRow.id == TrialRow.study_id)
        .outerjoin(ArchitectureRow, ArchitectureRow.key == TrialRow.architecture_key)
        .where(*where)
        .order_by(TrialRow.study_id, TrialRow.number)
    )
    return [Trial(**dict(zip(_TRIAL, row, strict=True))) for row in connection.execute(query)]


def _full_key(connection: Connection, prefix: str) -> str:
    keys = connection.scalars(
        select(ArchitectureRow.key)
        .where(ArchitectureRow.key.startswith(prefix.lower(), autoescape=True))
        .order_by(ArchitectureRow.key)
        .limit(4)
    ).all()
    if not keys:
        raise InputError(f"no architecture has a key that begins with {prefix!r}")
    if len(keys) > 1:
        more = ", ..." if len(keys) > 3 else ""
        raise InputError(
            f"the architecture key {prefix!r} is ambiguous, give more digits: "
            f"{', '.join(keys[:3])}{more}"
        )
    return keys[0]


def _add_architecture(connection: Connection, architecture: Architecture) -> str:
    """Store the architecture unless it is there; its key."""
    counts = count_parameters(architecture)
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name]
    connection.execute(
        dialect.insert(ArchitectureRow)
        .values(
            key=architecture.key,
            document=architecture.plain(),
            pattern=architecture.pattern,
            d_model=architecture.d_model,
            num_layers=architecture.num_layers,
            total_params=counts.total,
            active_params=counts.active,
        )
        .on_conflict_do_nothing()
    )
    return architecture.key


def _end(connection: Connection, study_id: int, number: int, key: str, **fields: Any) -> int:
    """End a running trial; the id of its row."""
    ended = connection.scalar(
        update(TrialRow)
        .where(
            TrialRow.study_id == study_id,
            TrialRow.number == number,
            TrialRow.architecture_key == key,
            TrialRow.state == "running",
        )
        .values(**fields, ended=datetime.now(UTC))
        .returning(TrialRow.id)
    )
    assert ended is not None, f"no trial {number} of architecture {key} is running"
    return ended


def _add_measurements(connection: Connection, trial_id: int, report: Report) -> None:
    """Store the measurements of a report, in place of an earlier report of the same rung."""
    connection.execute(
        delete(MeasurementRow).where(
            MeasurementRow.trial_id == trial_id, MeasurementRow.rung == report.rung
        )
    )
    if report.measurements:
        rows = [{"trial_id": trial_id, **asdict(m)} for m in report.measurements]
        connection.execute(insert(MeasurementRow), rows)


def _front(connection: Connection, study_id: int) -> dict[int, list[float]]:
    rows = connection.execute(
        select(TrialRow.number, TrialRow.values)
        .where(TrialRow.study_id == study_id, TrialRow.on_front)
        .order_by(TrialRow.number)
    )
    return {number: values for number, values in rows if values}


def _update_front(
    connection: Connection, held: _Held, number: int, values: Sequence[float]
) -> None:
    """Let a trial enter the front if no other dominates it, and those that it dominates leave."""
    front = _front(connection, held.id)
    enters, dominated = pareto.admit(list(front.values()), values, held.signs)
    if not enters:
        return
    leaves = [n for n, is_dominated in zip(front, dominated, strict=True) if is_dominated]
    in_study = update(TrialRow).where(TrialRow.study_id == held.id)
    connection.execute(
        in_study.where(TrialRow.number.in_(leaves)).values(on_front=False, front_left=number)
    )
    connection.execute(
        in_study.where(TrialRow.number == number).values(on_front=True, front_entered=number)
    )


def _fix_box(connection: Connection, held: _Held, *, at_least: int) -> None:
    """Fix the box of a study with `at_least` feasible trials, and fill in earlier hypervolumes."""
    rows = connection.execute(
        select(FrontRow.id, TrialRow.values, TrialRow.feasible)
        .join(TrialRow, _SAME_TRIAL)
        .where(FrontRow.study_id == held.id)
        .order_by(FrontRow.id)
    )
    steps = [(step, values if feasible else None) for step, values, feasible in rows]
    feasible = [values for _, values in steps if values]
    if len(feasible) < at_least:
        return
    box = pareto.box(feasible, held.signs)
    connection.execute(
        update(StudyRow).where(StudyRow.id == held.id).values(ideal=box[0], reference=box[1])
    )
    so_far: list[list[float]] = []
    for step, values in steps:
        so_far += [values] if values else []
        volume = pareto.hypervolume(so_far, held.signs, *box)
        connection.execute(update(FrontRow).where(FrontRow.id == step).values(hypervolume=volume))


def _timed(key: str, *, point: dict[str, Any], **columns: Any) -> Timed:
    try:
        found = Timed(point=Point(**point), **columns)
    except TypeError:
        found = None
    if found is None or not 0 < found.low <= found.seconds <= found.high < math.inf:
        raise InputError(
            f"timing {key} in the store is damaged: delete its row in {TimingRow.__tablename__} "
            "and measure again"
        )
    return found


def _storable(reason: str) -> str:
    """Text that every database takes: a message may hold stray bytes, PostgreSQL takes no NUL."""
    return reason.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
