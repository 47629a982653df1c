import pytest
import torch
from torch import nn

from sfumato.training.update.gradients import FlatGradients


def _parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [
        nn.Parameter(torch.randn(3, 4)),
        nn.Parameter(torch.randn(5)),
        nn.Parameter(torch.randn(2, 2).bfloat16()),
    ]


def _backward(parameters: list[nn.Parameter], factor: float = 1.0) -> None:
    (factor * sum((p.float() ** 2).sum() for p in parameters)).backward()


def test_flat_gradients_accumulate_like_ordinary_ones_and_zero_in_place() -> None:
    parameters = _parameters()
    flat = FlatGradients(parameters)
    views = [p.grad for p in parameters]
    _backward(parameters)
    _backward(parameters)
    for parameter in parameters:
        torch.testing.assert_close(parameter.grad, 4 * parameter.detach())
    flat.zero()
    assert all(p.grad is view and not view.any() for p, view in zip(parameters, views, strict=True))


def test_norm_and_clipping_agree_with_torch() -> None:
    parameters = _parameters()[:2]
    flat = FlatGradients(parameters)
    _backward(parameters)
    expected = [p.grad.clone() for p in parameters]
    norm = flat.norm()
    torch.testing.assert_close(norm, torch.linalg.vector_norm(torch.cat([g.flatten() for g in expected])))
    flat.tame_(norm, 0.5)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * 0.5 / norm, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("max_norm", "expected"),
    [(10.0, [3.0, 4.0]), (5.5, [3.0, 4.0]), (2.5, [1.5, 2.0]), (1.0, [0.6, 0.8])],
)
def test_clipping_shortens_long_gradients_and_never_lengthens_short_ones(
    max_norm: float, expected: list[float]
) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    flat = FlatGradients([parameter])
    (parameter * torch.tensor([3.0, 4.0])).sum().backward()
    flat.tame_(flat.norm(), max_norm)
    assert parameter.grad is not None
    assert parameter.grad.tolist() == pytest.approx(expected, rel=1e-6)


def test_zero_max_norm_means_no_clipping() -> None:
    parameters = _parameters()
    flat = FlatGradients(parameters)
    _backward(parameters, 100.0)
    before = [p.grad.clone() for p in parameters]
    flat.tame_(flat.norm(), 0.0)
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, before, strict=True))


def test_gradients_that_are_not_finite_become_zero() -> None:
    parameters = _parameters()
    flat = FlatGradients(parameters)
    _backward(parameters, float("nan"))
    norm = flat.norm()
    assert not torch.isfinite(norm)
    flat.tame_(norm, 1.0)
    assert all(not p.grad.any() for p in parameters)
