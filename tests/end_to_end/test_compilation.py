"""Compiled blocks compute the same, and a new size of images compiles nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from sfumato.errors import UserError
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.nn import checkpointing, compilation

CPU = torch.device("cpu")


# PyTorch's compiler looks at an attribute that warns, and hides the warning by its own means.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_new_sizes_compile_nothing_and_blocks_with_their_own_adapters_stay_apart() -> None:
    torch.manual_seed(0)
    model = Flux(FluxShape(32, 2, 2, 6, 8, 12, 10, 64, (4, 6, 6), guidance=False)).requires_grad_(False)
    blocks = [*model.double_blocks, *model.single_blocks]
    added = []
    for block in model.single_blocks:
        layer = block.linear1
        added.append(nn.Parameter(0.1 * torch.randn_like(layer.weight)))
        layer.register_forward_hook(
            lambda _, args, out, weight=added[-1]: out + nn.functional.linear(args[0], weight)
        )

    def gradients(num_tokens: int) -> list[Tensor]:
        rng = torch.Generator().manual_seed(num_tokens)
        image, words = (torch.randn(2, n, c, generator=rng) for n, c in ((num_tokens, 8), (3, 12)))
        places = torch.zeros(2, num_tokens, 3), torch.zeros(2, 3, 3)
        out = model(image, places[0], words, places[1], torch.full((2,), 0.5), torch.ones(2, 10))
        return [out, *torch.autograd.grad(out.square().sum(), added)]

    expected = {size: gradients(size) for size in (6, 8, 15)}
    torch._dynamo.reset()
    compilation.enable(blocks, "eager")
    checkpointing.enable(blocks)
    counters.clear()
    found = {6: gradients(6)}
    compiled = counters["stats"]["unique_graphs"]
    assert 2 <= compiled <= 4  # two kinds of block
    found |= {size: gradients(size) for size in (8, 15)}
    assert counters["stats"]["unique_graphs"] == compiled
    for size, tensors in expected.items():
        for one, other in zip(tensors, found[size], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compilation.check("eager", CPU)
    monkeypatch.setattr("sfumato.nn.compilation.shutil.which", lambda name: f"/usr/bin/{name}")
    compilation.check("inductor", CPU)
    monkeypatch.setattr("sfumato.nn.compilation.shutil.which", lambda name: None)
    monkeypatch.setattr("sfumato.nn.compilation.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^--torch_compile needs a C\+\+ compiler: install one, or leave that out"
    ):
        compilation.check("inductor", CPU)
    with pytest.raises(UserError, match="needs triton, which is missing here: run "):
        compilation.check("inductor", torch.device("cuda"))
    for backend in ("ofi", "tvm"):
        with pytest.raises(UserError, match=f"^--dynamo_backend {backend} is not installed here"):
            compilation.check(backend, CPU)


def test_a_backend_that_the_option_misspells_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.compiler, "list_backends", lambda exclude_tags: ["tensorrt"])
    monkeypatch.setattr(torch, "compile", lambda forward, backend, dynamic: asked.append(backend) or forward)
    compilation.check("tensort", CPU)
    compilation.enable([torch.nn.Linear(1, 1)], "tensort")
    assert asked == ["tensorrt"]
