"""Plans: rungs, tasks and their settings."""

from typing import Any

import pytest
from pydantic import ValidationError

from archfront.search_space.check import check_space
from archfront.search_space.document import InputError, parse_document
from archfront.search_space.plan import Plan, RecallSettings, TextSettings


def fractions(*given: float) -> list[dict[str, Any]]:
    return [{"fraction": fraction} for fraction in given]


def test_a_plan_has_one_rung_at_the_end_of_training_by_default():
    assert [rung.fraction for rung in Plan().rungs] == [1.0]


def test_rungs_ascend_to_the_whole_run():
    plan = Plan.model_validate({"rungs": fractions(0.15, 0.5, 1)})
    assert [rung.fraction for rung in plan.rungs] == [0.15, 0.5, 1.0]
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


@pytest.mark.parametrize("given", [(), (0.5,), (0.5, 0.25, 1), (0.5, 0.5, 1), (1, 1)])
def test_rungs_that_do_not_ascend_to_one_are_rejected(given: tuple[float, ...]):
    with pytest.raises(ValidationError, match=r"must have ascending fractions, the last 1\.0, got"):
        Plan.model_validate({"rungs": fractions(*given)})


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan")])
def test_a_fraction_is_above_zero_and_at_most_one(fraction: float):
    with pytest.raises(ValidationError, match=r"greater than 0|less than or equal to 1"):
        Plan.model_validate({"rungs": fractions(fraction, 1)})


def test_bad_rungs_of_a_space_file_are_one_line_with_file_and_field(tiny_space: str):
    text = tiny_space.replace("profile:", "profile:\n  rungs: [{fraction: 0.5}]", 1)
    with pytest.raises(InputError) as caught:
        check_space(parse_document(text, source="tiny.yaml"))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("tiny.yaml:")
    assert message.endswith(
        "profile.rungs: rungs must have ascending fractions, the last 1.0, got [0.5]"
    )


def test_the_tasks_of_a_plan_are_its_fields_with_task_settings():
    assert Plan().tasks == {"text": TextSettings(), "recall": RecallSettings()}


@pytest.mark.parametrize("field", ["context", "vocabulary"])
def test_recall_has_room_for_its_pairs(field: str):
    message = f"{field} must be at least 4 \\* pairs, got {field}=19, pairs=5"
    with pytest.raises(ValidationError, match=message):
        RecallSettings.model_validate({field: 19})
