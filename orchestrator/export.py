"""Export of an architecture as one YAML file, which builds, trains and profiles without a store."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ..profilers.report import Report
from ..search_space.architecture import Architecture, architecture_from, to_yaml
from ..search_space.check import check_space
from ..search_space.document import InputError, Record, parse_document, read_document, validate
from ..search_space.plan import Plan
from .store import Store, Trial


class Exported(Record):
    """An architecture with the plan under which it was profiled, and its measurements."""

    schema_version: Literal[1] = 1
    key: str
    architecture: Architecture
    profile: Plan = Plan()
    seed: int = 0
    origin: dict[str, Any] = Field(default_factory=dict)
    measurements: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _validate(self) -> Self:
        if self.key != self.architecture.key:
            raise ValueError(
                f"key must be that of the architecture, {self.architecture.key}, got {self.key}; "
                "delete the key and the measurements if you changed the architecture"
            )
        return self


def best_known(store: Store, key: str, study: str | None = None) -> tuple[Trial, Report]:
    """The newest completed trial of an architecture, of one study if it is named, and its report.

    `key` may be a unique prefix. Raises InputError where there is no such trial or no such study.
    """
    trials = store.trials_of(key)
    if study is not None:
        store.study(study)
        trials = [trial for trial in trials if trial.study == study]
    complete = [trial for trial in trials if trial.state == "complete"]
    if not complete:
        where = f" in study {study}" if study else ""
        ends = "; ".join(f"{t.study} trial {t.number} {t.state}: {t.reason}" for t in trials)
        raise InputError(
            f"architecture {key} has no completed trial{where} ({ends or 'not tried'})"
        )
    trial = max(complete, key=lambda t: t.started)
    report = store.report(trial.study, trial.number)
    assert report is not None, "a completed trial has a report"
    return trial, report


def exported(store: Store, key: str, study: str | None = None) -> Exported:
    """The file of `archfront export`: the trial that `best_known` finds, under its study's plan."""
    trial, report = best_known(store, key, study)
    source = store.study(trial.study)
    space = check_space(parse_document(source.space_yaml, source=f"study {source.name}"))
    return Exported(
        key=report.key,
        architecture=store.architecture(report.key),
        profile=space.plan.model_copy(update={"target": source.target}),
        seed=source.seed,
        origin={
            "study": trial.study,
            "trial": trial.number,
            "archfront": source.version,
            **report.facts,
        },
        measurements=tuple(
            {name: value for name, value in vars(m).items() if value is not None} | {"unit": m.unit}
            for m in report.measurements
        ),
    )


def as_yaml(config: Exported) -> str:
    """The file's text; reading it gives an equal record."""
    return to_yaml(config.model_dump(mode="json"))


def write_new(path: Path, text: str, *, force: bool) -> None:
    """Write a file that is not there yet (or any, with `force`). Raises InputError."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path}: exists already, give another name or --force") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def read_config(path: Path) -> Exported:
    """Read an exported file, or a bare architecture, which gets the default plan.

    Raises InputError.
    """
    document = read_document(path)
    if "key" in document.data:
        return validate(Exported, document)
    architecture = architecture_from(document)
    plan = document.data.get("profile") if "architecture" in document.data else None
    return Exported(
        key=architecture.key,
        architecture=architecture,
        profile=validate(Plan, document, plan, ("profile",)) if plan is not None else Plan(),
    )
