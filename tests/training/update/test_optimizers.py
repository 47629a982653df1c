import importlib
import math

import pytest
import torch

from sfumato.adapters.network.rates import ParameterGroup
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.schedule import ScheduleConfig
from sfumato.errors import UserError
from sfumato.training.core.plan import Plan
from sfumato.training.update import optimizers, schedulers
from sfumato.training.update.optimizer_step import Update
from sfumato.training.update.stepping import Stepping

STEP = Plan(1, 1, 1).step(1)

STEPS_BY_NAME = {
    **dict.fromkeys(("", *optimizers.NAMED, "bitsandbytes.optim.AdEMAMix8bit"), 20),
    **dict.fromkeys(("bitsandbytes.optim.PagedAdEMAMix8bit", "RMSprop", "torch.optim.Adamax"), 20),
    # They start from a rate of 1e-6 and take their time to raise it.
    **dict.fromkeys((name for name in optimizers.NAMED if name.startswith("dadapt")), 150),
    "prodigy": 100,
}


@pytest.mark.parametrize(("name", "num_steps"), STEPS_BY_NAME.items())
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated")
def test_every_named_optimizer_reduces_a_loss(name: str, num_steps: int) -> None:
    weight = _weight()
    update = _update(name, weight, 1.0 if name.startswith(("dadapt", "prodigy")) else 1e-2)
    losses = []
    for _ in range(num_steps):
        update.begin(STEP)
        update.accumulate((weight**2).sum() / 2)
        loss, norm = update.finish().tolist()
        assert math.isfinite(norm)
        losses.append(loss)
    assert losses[-1] < 0.9 * losses[0]
    assert update.stepping.rates()[0].effective > 0


def _weight() -> torch.nn.Parameter:
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(32, 48))


def _update(name: str, weight: torch.nn.Parameter, rate: float, *arguments: str) -> Update:
    config = OptimizerConfig(optimizer_type=name, optimizer_args=arguments, learning_rate=rate)
    chosen = optimizers.plan(config)
    optimizer = chosen.build([{"params": [weight], "lr": rate}], rate)
    scheduler = schedulers.build(ScheduleConfig(), optimizer, chosen, rate, 20)
    return Update(Stepping(optimizer, scheduler), Alone(), max_grad_norm=0)  # type: ignore[arg-type]


class Alone:
    def sum_(self, tensor: torch.Tensor) -> None:
        """Sum over one process."""


def test_arguments_are_python_literals_and_are_recorded_as_given() -> None:
    plan = optimizers.plan(OptimizerConfig(optimizer_args=("weight_decay=0.01", "betas=0.9,0.99")))
    assert plan.description == "torch.optim.adamw.AdamW(weight_decay=0.01,betas=(0.9, 0.99))"


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("weight_decay=0.01,", "leave out the comma: blanks stand between arguments"),
        ("betas=(0.9,", r"was split at a blank: write it without, as betas=\(0.9,0.99\)"),
        ("eps=0,0001", "a number has a point: eps=0.0001"),
        ("eps=small", "text needs quotes: eps='small'"),
    ],
)
def test_an_argument_that_a_blank_or_comma_broke_is_mended_in_words(argument: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        optimizers.plan(OptimizerConfig(optimizer_args=(argument, "amsgrad=True")))


def test_adafactor_s_arguments_are_recorded_in_the_order_given() -> None:
    asked = ("scale_parameter=False", "relative_step=False")
    plan = optimizers.plan(OptimizerConfig(optimizer_type="adafactor", optimizer_args=asked, max_grad_norm=0))
    assert plan.description.endswith("Adafactor(scale_parameter=False,relative_step=False)")


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
        (OptimizerConfig(optimizer_type="nowhere.Best"), "-m pip install nowhere"),
        (OptimizerConfig(optimizer_args=("weight_decay",)), "write each argument as key=value"),
        (OptimizerConfig(optimizer_args=("decay=fast",)), "needs quotes"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(config: OptimizerConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        optimizers.plan(config)


@pytest.mark.parametrize(
    ("name", "argument", "says"),
    [
        ("", "speed=3", "holds speed, which AdamW does not know; it knows betas, eps, weight_decay"),
        ("torch.optim.SGD", "betas=0.9,0.99", "holds betas, which SGD does not know; it knows momentum"),
        ("Prodigy", "speed=3", "holds speed, which Prodigy does not know"),
        ("", "lr=1", "holds lr=1; give it as --learning_rate"),
        ("", "betas=5", "--optimizer_args betas=5 do not suit AdamW: "),
        ("", "betas=(0.9,)", r"--optimizer_args betas=\(0.9,\) do not suit AdamW: "),
        ("", "capturable=True", "--optimizer_args capturable=True do not suit AdamW: "),
        ("", "weight_decay=1e39", "weight_decay=1e[+]39 let AdamW make weights that are no numbers"),
        ("LBFGS", "history_size=3", "--optimizer_type LBFGS computes the loss again .*choose another"),
        ("SparseAdam", "eps=1e-7", "eps=1e-07 do not suit SparseAdam: .*does not support dense gradients"),
        ("", "weight_decay=-1", "do not suit AdamW: .*Invalid weight_decay"),
        ("torch.optim.NoSuch", "eps=1", "--optimizer_type is torch.optim.NoSuch; known are"),
    ],
)
def test_arguments_that_an_optimizer_does_not_take_are_one_line(name: str, argument: str, says: str) -> None:
    config = OptimizerConfig(optimizer_type=name, optimizer_args=(argument,), learning_rate=1.0)
    with pytest.raises(UserError, match=says) as raised:
        optimizers.plan(config).check(1e-3)
    assert "\n" not in str(raised.value)


def test_an_optimizer_that_fails_in_its_step_is_one_line() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    stepping = Stepping(
        optimizers.plan(OptimizerConfig(optimizer_type="SparseAdam")).build([{"params": [weight]}], 1)
    )
    weight.grad = torch.ones(1)
    with pytest.raises(UserError, match=r"the optimizer SparseAdam failed: .*dense"):
        stepping.step()


@pytest.mark.parametrize("name", ["Prodigy", "DAdaptAdam"])
def test_a_rate_that_the_optimizer_finds_is_shown_as_it_grows(name: str) -> None:
    weight = _weight()
    update = _update(name, weight, 1.0)
    rates = []
    for _ in range(30):
        update.begin(STEP)
        update.accumulate((weight**2).sum())
        update.finish()
        rates += [rate.effective for rate in update.stepping.rates()]
    assert rates[0] < 1e-4 < rates[-1] < 10
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        (
            {"unet": 1.0, "textencoder 1 ": 0.5},
            r"several \(unet 1, textencoder 1 0.5\); give all of them one",
        ),
        ({"unet": 1.0, "unet plus": 16.0}, r"several \(unet 1, unet plus 16\); leave out LoRA\+ \(loraplus"),
    ],
)
def test_optimizers_that_find_one_rate_refuse_several(rates: dict[str, float], says: str) -> None:
    groups = [ParameterGroup([], rate, name) for name, rate in rates.items()]
    prodigy = optimizers.plan(OptimizerConfig(optimizer_type="prodigy", learning_rate=1.0))
    with pytest.raises(UserError, match=f"--optimizer_type Prodigy takes one learning rate, but .* {says}"):
        prodigy.check_rates(groups)
    adafactor = optimizers.plan(OptimizerConfig(optimizer_type="Adafactor"))
    (line,) = adafactor.check_rates(groups)
    assert "have no effect: --optimizer_type Adafactor sets its own" in line
    assert optimizers.plan(OptimizerConfig()).check_rates(groups) == []


def test_a_low_rate_is_warned_about_where_1_is_meant(caplog: pytest.LogCaptureFixture) -> None:
    optimizers.plan(OptimizerConfig(optimizer_type="DAdaptLion", learning_rate=1e-4))
    assert "DAdaptLion finds the rate itself, so use about 1.0" in caplog.text


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_it(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", without_it)
    with pytest.raises(UserError, match=r"-m pip install lion-pytorch$"):
        optimizers.plan(OptimizerConfig(optimizer_type="Lion"))


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGDScheduleFree"])
def test_schedule_free_weights_are_the_average_of_the_fast_ones_while_evaluating(name: str) -> None:
    weight = _weight()
    update = _update(name, weight, 1e-2)
    fast = []
    for _ in range(5):
        update.begin(STEP)
        update.accumulate((weight**2).sum())
        update.finish()
        fast.append(update.stepping.optimizer.state[weight]["z"].clone())
    trained = weight.detach().clone()
    with update.stepping.evaluating():
        torch.testing.assert_close(weight.detach(), torch.stack(fast).mean(0), rtol=1e-5, atol=1e-6)
        assert not torch.equal(weight, trained)
    assert torch.equal(weight, trained)


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "SGDScheduleFree", "AdamW"])
def test_evaluating_between_steps_changes_nothing(name: str) -> None:
    weights = []
    for looks in (False, True):
        weight = _weight()
        update = _update(name, weight, 1e-2)
        for _ in range(5):
            update.begin(STEP)
            update.accumulate((weight**2).sum())
            update.finish()
            if looks:
                with update.stepping.evaluating():
                    pass
        weights.append(weight.detach())
    assert torch.equal(*weights)


def test_adamw_fuses_its_kernels_only_where_every_permitted_torch_can() -> None:
    for kind, implied in (("cpu", {"fused": True}), ("cuda", {"fused": True}), ("mps", {})):
        assert optimizers.plan(OptimizerConfig(), torch.device(kind)).implied == implied
