"""Blocks that travel compute what resident ones do, and travel in time and no more than they must."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.models.components.unet.unet import UnetShape, blocks, build
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.nn import checkpointing, offload
from sfumato.nn.copy_stream import SerialCarrier, carrier_for
from sfumato.nn.offload import BlockSwap
from sfumato.nn.precision import store

CPU = torch.device("cpu")
WIDTH = 6
Act = tuple[str, Any]


class Recorder:
    """A carrier that writes down what is asked of it, in one list with what is computed."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.copied: list[int] = []
        self._names: dict[int, str] = {}
        self._num_moments = 0

    def host(self, num_bytes: int) -> Tensor:
        return self._named(num_bytes, f"home {sum(name.startswith('home') for name in self._names.values())}")

    def slot(self, num_bytes: int) -> Tensor:
        return self._named(num_bytes, f"slot {sum(name.startswith('slot') for name in self._names.values())}")

    def mark(self) -> int:
        return self._act("mark")

    def copy(self, target: Tensor, source: Tensor, after: int) -> int:
        target.copy_(source)
        self.copied.append(target.numel())
        return self._act("copy", (self._name(source), self._name(target), after))

    def wait(self, moment: int) -> None:
        self._act("wait", moment)

    def settle(self) -> None:
        self._act("settle")

    def clear(self) -> None:
        self.acts.clear()
        self.copied.clear()

    def copies(self) -> list[tuple[str, str]]:
        """Return source and target of each copy, by name, in order."""
        return [(detail[0], detail[1]) for act, detail in self.acts if act == "copy"]

    def loaded(self) -> list[int]:
        """Return the blocks that were copied to the device, in order."""
        return [int(source[5:]) for source, target in self.copies() if target.startswith("slot")]

    def _named(self, num_bytes: int, name: str) -> Tensor:
        buffer = torch.zeros(num_bytes, dtype=torch.uint8)
        self._names[buffer.untyped_storage().data_ptr()] = name
        return buffer

    def _name(self, buffer: Tensor) -> str:
        return self._names[buffer.untyped_storage().data_ptr()]

    def _act(self, act: str, detail: Any = None) -> int:
        self._num_moments += 1
        self.acts.append((act, self._num_moments if detail is None else detail))
        return self._num_moments


class Block(nn.Module):
    def __init__(self, tell: Callable[[str], object] = lambda act: None) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.tell = tell

    def forward(self, x: Tensor) -> Tensor:
        self.tell("forward")
        return x + torch.tanh(self.layer(x))


def recorded(num: int, *, is_trained: bool = False) -> tuple[Recorder, nn.Sequential, BlockSwap]:
    """Return a chain of swapped blocks, after one step that brought everything into its round."""
    torch.manual_seed(0)
    recorder = Recorder()
    chain = nn.Sequential()
    for index in range(num):
        block = Block(lambda act, index=index: recorder.acts.append((act, index)))
        block.requires_grad_(is_trained)
        chain.append(block)
    swap = BlockSwap(
        chain, recorder, lambda block: recorder.acts.append(("backward ends", list(chain).index(block)))
    )
    step(chain)
    recorder.clear()
    return recorder, chain, swap


def step(chain: nn.Module) -> Tensor:
    x = torch.ones(2, WIDTH, requires_grad=True)
    chain(x.view_as(x)).square().sum().backward()
    assert x.grad is not None
    return x.grad


def position(recorder: Recorder, act: str, detail: Any) -> int:
    return recorder.acts.index((act, detail))


def test_blocks_come_in_order_of_use_and_two_stay_at_each_turn() -> None:
    recorder, chain, _ = recorded(5)
    for _ in range(2):
        recorder.clear()
        step(chain)
        assert recorder.loaded() == [2, 3, 4, 2, 1, 0]


def test_the_next_block_is_copied_while_one_computes() -> None:
    recorder, chain, _ = recorded(6)
    step(chain)
    arrivals = {}
    for place, (act, detail) in enumerate(recorder.acts):
        if act == "copy" and detail[1].startswith("slot") and "forward" in dict(recorder.acts[place:]):
            arrivals.setdefault(int(detail[0][5:]), place)
    for index in range(2, 6):
        assert arrivals[index] < position(recorder, "forward", index - 1)


def test_a_slot_is_filled_after_its_block_has_computed_and_used_after_it_is_full() -> None:
    recorder, chain, _ = recorded(6)
    step(chain)
    acts = recorder.acts
    for index in range(2, 6):
        place = next(
            i for i, (act, detail) in enumerate(acts) if act == "copy" and detail[0] == f"home {index}"
        )
        after = acts[place][1][2]
        assert position(recorder, "forward", index - 2) < position(recorder, "mark", after) < place
        waited = [i for i, (act, _) in enumerate(acts) if act == "wait" and i > place]
        assert waited[0] < position(recorder, "forward", index)


def test_frozen_blocks_never_go_back_and_bytes_per_step_are_what_two_slots_leave() -> None:
    recorder, chain, swap = recorded(7)
    step(chain)
    assert not any(target.startswith("home") for _, target in recorder.copies())
    each = 4 * (WIDTH * WIDTH + WIDTH)
    padded = 64 * -(-4 * WIDTH * WIDTH // 64) + 64
    assert [offload.size_of(block) for block in chain] == [each] * 7
    assert swap.num_bytes == 7 * padded
    assert swap.slot_bytes == 2 * padded
    assert sum(recorder.copied) == 2 * (7 - 2) * padded


def test_trained_blocks_go_back_once_after_their_change_and_before_their_slot_is_filled_again() -> None:
    recorder, chain, _ = recorded(5, is_trained=True)
    step(chain)
    assert [int(target[5:]) for _, target in recorder.copies() if target.startswith("home")] == [
        4,
        3,
        2,
        1,
        0,
    ]
    assert [detail for act, detail in recorder.acts if act == "backward ends"] == [4, 3, 2, 1, 0]
    for index in range(5):
        home = next(
            i
            for i, (act, detail) in enumerate(recorder.acts)
            if act == "copy" and detail[1] == f"home {index}"
        )
        assert position(recorder, "backward ends", index) < home
        slot = recorder.acts[home][1][0]
        fills = [i for i, (act, detail) in enumerate(recorder.acts) if act == "copy" and detail[1] == slot]
        assert [i for i in fills if position(recorder, "backward ends", index) < i < home] == []
    sizes = offload.size_of(chain[0])
    assert sum(recorder.copied) >= (2 * (5 - 2) + 5) * sizes


def test_without_gradients_blocks_go_round() -> None:
    recorder, chain, _ = recorded(5)
    with torch.inference_mode():
        for _ in range(3):
            chain(torch.ones(1, WIDTH))
    assert recorder.loaded() == [2, 3, 4, 0, 1] * 3
    recorder.clear()
    step(chain)  # and the round of training goes on as if nothing had been
    assert recorder.loaded() == [2, 3, 4, 2, 1, 0]


def test_blocks_before_the_first_gradient_are_not_fetched_for_the_backward_pass() -> None:
    recorder, chain, _ = recorded(5)
    head = nn.Linear(WIDTH, WIDTH)
    for _ in range(2):
        recorder.clear()
        x = chain(torch.ones(2, WIDTH))
        head(x).square().sum().backward()
        assert recorder.loaded() == [2, 3, 4, 0, 1]


def test_the_change_of_a_trained_block_is_what_the_next_step_computes_with() -> None:
    results = []
    for swaps in (False, True):
        torch.manual_seed(0)
        chain = nn.Sequential(*(Block() for _ in range(5)))

        @torch.no_grad()
        def descend(block: nn.Module) -> None:
            for parameter in block.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
                parameter.grad = None

        swap = BlockSwap(chain, SerialCarrier(CPU), descend) if swaps else None
        for _ in range(4):
            # The input has no gradient: the first block must notice its end all the same.
            chain(torch.ones(2, WIDTH)).square().sum().backward()
            for block in () if swaps else chain:
                descend(block)
        if swap is not None:
            swap.settle()
        results.append([parameter.detach().clone() for parameter in chain.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert len(results[0]) == 10


class Hasty(SerialCarrier):
    """A carrier for somebody who does not wait."""

    def wait(self, moment: Any) -> None:
        """Leave what was begun unfinished."""


def test_computing_before_a_copy_has_arrived_shows_in_the_numbers() -> None:
    chain = nn.Sequential(*(Block() for _ in range(4)))
    patient = BlockSwap(chain, SerialCarrier(CPU))
    assert patient.num_bytes > 0
    assert chain(torch.ones(1, WIDTH)).isfinite().all()
    hasty = nn.Sequential(*(Block() for _ in range(4)))
    BlockSwap(hasty, Hasty(CPU))
    assert hasty(torch.ones(1, WIDTH)).isnan().any()


def flux_run(swaps: bool, recomputes: bool, is_trained: bool) -> list[Tensor]:
    """Return outputs and gradients of steps with images in between."""
    torch.manual_seed(0)
    model = Flux(FluxShape(32, 2, 4, 6, 8, 12, 10, 64, (4, 6, 6), guidance=False)).requires_grad_(is_trained)
    blocks = [*model.double_blocks, *model.single_blocks]
    added = [nn.Parameter(0.1 * torch.randn_like(layer.weight)) for layer in layers_of(blocks[2:])]
    for layer, weight in zip(layers_of(blocks[2:]), added, strict=True):
        layer.register_forward_hook(
            lambda _, args, out, weight=weight: out + nn.functional.linear(args[0], weight)
        )
    if swaps:
        chosen = offload.choose([offload.size_of(block) for block in blocks], 3)
        swap = BlockSwap([blocks[index] for index in chosen], carrier_for(CPU))
    if recomputes:
        checkpointing.enable(blocks)
    inputs = (torch.randn(1, 6, 8), torch.zeros(1, 6, 3), torch.randn(1, 3, 12), torch.zeros(1, 3, 3))
    seen = []
    for _ in range(2):
        out = model(*inputs, torch.tensor([0.5]), torch.ones(1, 10))
        out.square().sum().backward()
        with torch.inference_mode():
            seen += [out.detach().clone(), model(*inputs, torch.tensor([0.7]), torch.ones(1, 10)).clone()]
    if swaps:
        swap.settle()
    trained = [*added, *(parameter for parameter in model.parameters() if is_trained)]
    return seen + [parameter.grad for parameter in trained if parameter.grad is not None]


def layers_of(blocks: Sequence[nn.Module]) -> list[nn.Linear]:
    return [block.linear1 if hasattr(block, "linear1") else block.img_attn.qkv for block in blocks]  # type: ignore[misc]


@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
def test_outputs_and_gradients_of_a_transformer_are_the_same_to_the_bit(
    recomputes: bool, is_trained: bool
) -> None:
    plain, swapped = (flux_run(swaps, recomputes, is_trained) for swaps in (False, True))
    assert len(plain) == len(swapped) == (4 + 8 + 160 if is_trained else 4 + 8)
    assert all(torch.equal(one, other) for one, other in zip(plain, swapped, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_of_a_unet_are_the_same_to_the_bit(dtype: torch.dtype) -> None:
    results = []
    for swaps in (False, True):
        torch.manual_seed(0)
        unet = build(UnetShape(4, 4, 1, (32, 32), (1, 0), 1, 16, 0, is_linear=False)).to_empty(device="cpu")
        for parameter in unet.parameters():
            nn.init.normal_(parameter, std=0.1)
        unet.to(dtype)
        if dtype is torch.bfloat16:
            unet.to(memory_format=torch.channels_last)
        found = blocks(unet)
        if swaps:
            BlockSwap(found[1::2], SerialCarrier(CPU))
        checkpointing.enable(found[:3])
        for _ in range(2):
            out = unet(
                torch.ones(1, 4, 8, 8, dtype=dtype), torch.tensor([5.0]), torch.ones(1, 3, 16, dtype=dtype)
            )
            out.sample.square().sum().backward()
        results.append([out.sample, *(p.grad for p in unet.parameters() if p.grad is not None)])
    assert len(results[0]) > 100
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_any_format_and_any_order_of_dimensions_survives_the_journey() -> None:
    torch.manual_seed(0)

    def mixed() -> nn.Module:
        block = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(7, 3), nn.BatchNorm1d(3))
        block[0].to(memory_format=torch.channels_last)
        store(block, torch.float8_e4m3fn)
        block[2].to(torch.bfloat16)
        return block

    travelling = [mixed() for _ in range(3)]
    before = [[tensor.clone() for tensor in own(block)] for block in travelling]
    strides = [tensor.stride() for tensor in own(travelling[2])]
    BlockSwap(travelling, SerialCarrier(CPU))
    for block, tensors in zip(travelling, before, strict=True):
        for tensor, expected in zip(own(block), tensors, strict=True):
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor.float(), expected.float())
    assert [tensor.stride() for tensor in own(travelling[2])] == strides


def own(block: nn.Module) -> list[Tensor]:
    return [*block.parameters(), *block.buffers()]


def test_a_block_that_returns_something_else_than_tensors_is_refused() -> None:
    class Talker(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "x"

    talker = Talker()
    BlockSwap([talker], SerialCarrier(CPU))
    with pytest.raises(ValueError, match="must return tensors, not a str"):
        talker(torch.ones(1))


FULL_SIZE = [680] * 19 + [283] * 38
"""Megabytes of the published transformer's blocks in bfloat16."""


def test_blocks_count_by_their_size_and_what_is_saved_is_about_what_is_asked_for() -> None:
    assert offload.most_swapped(FULL_SIZE) == 36
    for num in (1, 8, 28, 36):
        chosen = offload.choose(FULL_SIZE, num)
        saved = sum(FULL_SIZE[index] for index in chosen) - 2 * 680
        assert 0.8 * num * 640 < saved < 1.1 * num * 640
    assert offload.choose(FULL_SIZE, 36) == list(range(57))
    assert offload.choose([10] * 8, 2) == [0, 2, 4, 6]
    for num in (0, 7):
        with pytest.raises(ValueError, match=f"{num} is not within 1 and 6"):
            offload.choose([10] * 8, num)


SD15 = UnetShape(4, 4, 2, (320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, 0, is_linear=False)
SDXL = UnetShape(4, 4, 2, (320, 640, 1280), (0, 2, 10), 10, 2048, 2816, is_linear=True)


@pytest.mark.parametrize(("shape", "most", "remaining"), [(SD15, 15, 0.24), (SDXL, 52, 0.07)])
def test_blocks_of_a_unet_save_what_is_asked_for_and_its_small_ones_stay(
    shape: UnetShape, most: int, remaining: float
) -> None:
    unet = build(shape)
    sizes = [offload.size_of(block) for block in blocks(unet)]
    assert offload.most_swapped(sizes) == most
    for num in range(1, most + 1):
        chosen = offload.choose(sizes, num)
        saved = sum(sizes[index] for index in chosen) - 2 * max(sizes[index] for index in chosen)
        assert 0.75 * num * max(sizes) < saved < 1.5 * num * max(sizes)
        assert min(sizes[index] for index in chosen) > max(sizes) / 8
    assert 1 - saved / offload.size_of(unet) == pytest.approx(remaining, abs=0.01)
