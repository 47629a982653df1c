import pytest

from sfumato.config.run.training.length import LengthConfig
from sfumato.training.core.plan import Plan, plan_for


def test_epochs_win_over_steps_and_count_partial_groups() -> None:
    config = LengthConfig(max_train_steps=1600, max_train_epochs=3, gradient_accumulation_steps=2)
    plan = plan_for(config, 5, 2)
    assert (plan.group, plan.steps_per_epoch, plan.num_steps, plan.num_epochs) == (4, 2, 6, 3)


def test_every_micro_batch_belongs_to_exactly_one_step_and_numbers_run_through() -> None:
    plan = Plan(num_batches=7, group=3, num_steps=6)
    steps = list(plan.steps())
    assert [list(step.micro_batches) for step in steps[:3]] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [step.ends_epoch for step in steps] == [False, False, True] * 2
    numbers = [step.first_number + i for step in steps for i in range(len(step.micro_batches))]
    assert numbers == list(range(14))
    assert [step.is_last for step in steps] == [False] * 5 + [True]


def test_two_processes_share_what_one_process_accumulates() -> None:
    plan = Plan(num_batches=5, group=2, num_steps=3)
    for step in plan.steps():
        shared = sorted(step.of_process(0, 2) + step.of_process(1, 2))
        assert shared == step.of_process(0, 1)


@pytest.mark.parametrize("finished", [0, 1, 4])
def test_a_resumed_plan_continues_where_the_other_would_be(finished: int) -> None:
    plan = Plan(num_batches=4, group=1, num_steps=6)
    assert list(plan.steps(finished)) == list(plan.steps())[finished:]


def test_the_epochs_together_are_the_run() -> None:
    plan = Plan(num_batches=5, group=2, num_steps=8)
    steps = [step for epoch in range(1, plan.num_epochs + 1) for step in plan.steps_of(epoch, finished=2)]
    assert steps == list(plan.steps(2))
