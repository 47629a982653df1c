import pytest
import torch

from sfumato.config.optimizer import OptimizerConfig
from sfumato.errors import UserError
from sfumato.training import optimizers


@pytest.mark.parametrize(
    "name", ["", "AdamW", "adamw8bit", "Adafactor", "SGDNesterov", "Lion8bit", "RMSprop"]
)
def test_named_optimizers_reduce_a_quadratic_loss(name: str) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 64))
    before = weight.detach().norm()
    arguments = ("relative_step=False", "scale_parameter=False") if name == "Adafactor" else None
    config = OptimizerConfig(
        optimizer_type=name, optimizer_args=arguments, learning_rate=1e-2, max_grad_norm=0.0
    )
    optimizer = optimizers.plan(config).build([{"params": [weight], "lr": 1e-2}], 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert weight.detach().norm() < 0.95 * before


def test_arguments_are_python_literals_and_are_recorded_as_given() -> None:
    plan = optimizers.plan(OptimizerConfig(optimizer_args=("weight_decay=0.01", "betas=0.9,0.99")))
    assert plan.description == "torch.optim.adamw.AdamW(weight_decay=0.01,betas=(0.9, 0.99))"


def test_adafactor_sets_its_own_rates_unless_told_otherwise() -> None:
    assert optimizers.plan(OptimizerConfig(optimizer_type="adafactor")).relative_step
    both = ("relative_step=False", "warmup_init=True")
    assert optimizers.plan(OptimizerConfig(optimizer_type="adafactor", optimizer_args=both)).relative_step
    off = ("relative_step=False",)
    assert not optimizers.plan(OptimizerConfig(optimizer_type="adafactor", optimizer_args=off)).relative_step


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimizerConfig(optimizer_type="AdanW"), "--optimizer_type is AdanW; known are"),
        (OptimizerConfig(optimizer_type="nowhere.Best"), "run `pip install nowhere`"),
        (OptimizerConfig(optimizer_args=("weight_decay",)), "write each argument as key=value"),
        (OptimizerConfig(optimizer_args=("decay=fast",)), "needs quotes"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(config: OptimizerConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        optimizers.plan(config)


def test_unknown_arguments_name_the_optimizer() -> None:
    plan = optimizers.plan(OptimizerConfig(optimizer_args=("speed=3",)))
    with pytest.raises(UserError, match="do not suit AdamW"):
        plan.build([{"params": [torch.nn.Parameter(torch.zeros(1))]}], 1e-3)
