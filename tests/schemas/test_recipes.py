"""Recipes: a paper's settings below one's own."""

import pytest
from pydantic import ValidationError

from schemas.objective import Gkd, MiniLLM, StepByStep, teaches
from schemas.recipes import RECIPES
from schemas.student import TrainingSpec, advice


def spec(**sections: object) -> TrainingSpec:
    return TrainingSpec.model_validate({"student": "s", "teacher": "t", **sections})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_spec_and_stays_one_when_it_is_written_down(name: str) -> None:
    made = spec(recipe=name)
    for key, value in RECIPES[name].settings.items():
        found = made.model_dump(by_alias=True)[key]
        assert found == value or value.items() <= found.items()
    assert TrainingSpec.model_validate(made.model_dump(mode="json", by_alias=True)) == made


def test_ones_own_settings_win_and_the_rest_of_an_objective_stays() -> None:
    made = spec(recipe="minillm", learning_rate=1e-3, objective={"name": "minillm", "clip": 0.1})
    assert isinstance(made.objective, MiniLLM)
    assert (made.learning_rate, made.objective.clip, made.objective.teacher_mix, made.steps) == (1e-3, 0.1, 0.2, 5_000)
    other = spec(recipe="gkd", objective={"name": "gkd", "lambda": 0.0})
    assert isinstance(other.objective, Gkd) and (other.objective.student_fraction, other.objective.beta) == (0.0, 0.1)
    few = spec(recipe="distilling_step_by_step", epochs=2)
    assert isinstance(few.objective, StepByStep) and few.steps is None and few.epochs == 2


def test_white_box_recipes_want_a_teacher_and_unknown_ones_are_told() -> None:
    assert teaches(spec(recipe="kd").objective)
    with pytest.raises(ValidationError, match="set teacher"):
        TrainingSpec.model_validate({"student": "s", "recipe": "kd"})
    for odd in ("lamini2", ["kd"]):
        with pytest.raises(ValidationError, match="is not known"):
            spec(recipe=odd)


def test_who_learns_from_what_it_writes_should_be_able_to_write() -> None:
    sampled = {"student": {"from": "m", "layers": 2}, "teacher": "t", "objective": {"name": "gkd"}}
    assert "starts from a fine-tuned student" in advice(TrainingSpec.model_validate(sampled))
    fixed = {**sampled, "objective": {"name": "gkd", "lambda": 0.0}}
    for fine in (fixed, {**sampled, "student": "run/student"}, {**sampled, "fine_tune_first": {}}):
        assert advice(TrainingSpec.model_validate(fine)) == ""
