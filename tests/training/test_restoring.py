"""What a state puts back is what was saved, or it says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.adapters.sd_scripts.third_party import ForeignNetwork
from sfumato.errors import UserError
from sfumato.training.state.resume import State, read_state, state_content


class Scaled(nn.Module):
    """Learns a product, keeps a count beside it, and shows the product alone in its state."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(3))
        self.register_buffer("factor", torch.tensor(factor), persistent=False)
        self.count = torch.zeros(1)

    def apply_to(self, *_: Any) -> None: ...
    def prepare_grad_etc(self, *_: Any) -> None: ...

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {"product": self.value * self.factor, "count": self.count.detach()}


class Trained:
    """As much of a trainable as states ask for."""

    file_holds_all = False

    def __init__(self, tensors: Callable[[], Any]) -> None:
        self.tensors = lambda: iter(tensors())


def guest(network: nn.Module) -> ForeignNetwork:
    made = ForeignNetwork(network, "--network_module x", nn.Module(), nn.Module())
    made.attach()
    return made


def update() -> Any:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    return SimpleNamespace(stepping=SimpleNamespace(optimizer=optimizer, scheduler=None), scaler=None)


def saved(folder: Path, tensors: Callable[[], Any]) -> State:
    content = state_content(Trained(tensors), update(), 3, 1, {"seed": 1, "options": {}})  # type: ignore[arg-type]
    content.write(folder)
    return read_state(folder)


def restore(state: State, tensors: Callable[[], Any]) -> None:
    state.restore(Trained(tensors), update())  # type: ignore[arg-type]


def test_parameters_buffers_and_other_live_tensors_come_back_whatever_the_state_makes_of_them(
    tmp_path: Path,
) -> None:
    trained, fresh = Scaled(0.5), Scaled()
    trained.value.data += torch.tensor([1.0, -2.0, 3.0])
    trained.count += 7
    state = saved(tmp_path / "a-state", guest(trained).tensors)
    restore(state, guest(fresh).tensors)
    assert fresh.value.tolist() == [1, -2, 3]
    assert (fresh.factor.item(), fresh.count.item()) == (0.5, 7)


def test_a_state_of_a_version_that_left_a_buffer_out_leaves_it_as_it_is(tmp_path: Path) -> None:
    trained, fresh = Scaled(0.5), Scaled()
    trained.value.data += 1
    before = [(name, tensor) for name, tensor in guest(trained).tensors() if "factor" not in name]
    restore(saved(tmp_path / "a-state", lambda: before), guest(fresh).tensors)
    assert (fresh.value.tolist(), fresh.factor.item()) == ([1, 1, 1], 1)


def test_a_state_that_lacks_a_weight_is_refused_before_anything_is_restored(tmp_path: Path) -> None:
    fresh = Scaled()
    state = saved(tmp_path / "a-state", lambda: [("count", torch.ones(1)), ("product", torch.ones(3))])
    with pytest.raises(UserError, match=r"a-state holds nothing for value, which is \(3,\) now"):
        restore(state, guest(fresh).tensors)
    assert fresh.count.item() == 0


def test_what_is_made_anew_each_time_is_not_taken_for_restored(tmp_path: Path) -> None:
    value = torch.ones(2)

    def copies() -> Iterator[tuple[str, Tensor]]:
        yield "own", value
        yield "product", value * 2

    state = saved(tmp_path / "a-state", copies)
    restore(state, copies)  # nothing differs yet
    value.zero_()
    state = saved(tmp_path / "b-state", lambda: [("product", torch.full((2,), 2.0))])
    with pytest.raises(UserError, match="product cannot be put back: it is made anew of something else"):
        restore(state, lambda: [("product", value * 2)])


def moments(*sizes: int) -> tuple[Trained, Any]:
    """Return weights and an update of them that has taken a step."""
    named = {f"w{index}": nn.Parameter(torch.zeros(size)) for index, size in enumerate(sizes)}
    optimizer = torch.optim.AdamW(named.values())
    for weight in named.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    stepping = SimpleNamespace(optimizer=optimizer, scheduler=None)
    return Trained(named.items), SimpleNamespace(stepping=stepping, scaler=None)


def test_what_an_optimizer_remembers_of_other_weights_is_refused_before_anything_is_restored(
    tmp_path: Path,
) -> None:
    trained, taken = moments(2, 3)
    state_content(trained, taken, 1, 1, {"seed": 1, "options": {}}).write(tmp_path / "a-state")  # type: ignore[arg-type]
    state = read_state(tmp_path / "a-state")
    other, update = moments(3, 2)
    with pytest.raises(UserError, match=r"holds \(2,\) for w0, which is \(3,\) now; resume with"):
        state.restore(other, update)  # type: ignore[arg-type]
    again, update = moments(2, 3)
    update.stepping.optimizer.param_groups[0]["params"].reverse()
    with pytest.raises(UserError, match=r"has \(2,\) for w0, where the run has \(3,\) for w1"):
        state.restore(again, update)  # type: ignore[arg-type]
    update.stepping.optimizer.param_groups[0]["params"].reverse()
    state.restore(again, update)  # type: ignore[arg-type]
    without = {key: value for key, value in state.record.items() if key != "parameters"}
    State(state.folder, without).restore(again, update)  # type: ignore[arg-type]
    update.stepping.optimizer.param_groups[0]["params"].pop()
    with pytest.raises(UserError, match=r"has \(3,\) for w1, where the run has nothing"):
        state.restore(again, update)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has a weight number 2, and the run has 1"):
        State(state.folder, without).restore(again, update)  # type: ignore[arg-type]
