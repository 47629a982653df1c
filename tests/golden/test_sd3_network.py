"""The MMDiT gives the numbers that sd-scripts gives, on the same weights and inputs."""

from typing import Any

import pytest
import torch

from sfumato.models.families.sd3.network import MMDiT, MMDiTShape
from sfumato.models.families.sd3.positions import PATCH, ScaledPositions, random_corner, sides_of
from sfumato.nn.time_embedding import sinusoids
from tests.golden.derived import arrays, assert_recorded, cases, rule, settings, weight

FIXTURES = ("a_sd3_seed", "a_sd3_head")
WHOLE = [(name, case) for name in FIXTURES for case in cases(name) if "variant" in case]
CASES = [(name, case) for name, case in WHOLE if case["variant"] != "dual"]
"""All that are right: `dual` splits the heads of the second attention wrongly."""


def build(name: str, case: dict[str, Any]) -> MMDiT:
    shape = MMDiTShape(
        hidden_size=case["hidden"],
        num_heads=case["heads"],
        depth=case["depth"],
        text_width=case["context_dim"],
        pooled_width=case["adm"],
        mlp_hidden=4 * case["hidden"],
        side=case["pos_embed_max_size"],
        has_qk_norm=case["qk_norm"] == "rms",
        dual_blocks=frozenset(case["dual_attention_layers"]),
    )
    model, prefix = MMDiT(shape), settings(name).get("key_prefix", "")
    weights = {k: weight(prefix + k, v.shape, case["weight_std"]) for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    assert MMDiTShape.of({key: tuple(value.shape) for key, value in weights.items()}) == shape
    return model


def run(model: MMDiT, case: dict[str, Any]) -> torch.Tensor:
    def given(name: str, *shape: int) -> torch.Tensor:
        return rule(f"input:asd3.{case['id']}.{name}", shape)

    batch = case["shape"][0]
    context = given("context", batch, case["txt_len"], case["context_dim"])
    return model(given("x", *case["shape"]), torch.tensor(case["t"]), context, given("y", batch, case["adm"]))


@pytest.mark.parametrize(
    ("name", "case"), CASES, ids=lambda value: value if isinstance(value, str) else value["id"]
)
def test_output_loss_and_gradients_agree(name: str, case: dict[str, Any]) -> None:
    model, numbers = build(name, case), arrays(name)
    out = run(model, case)
    loss = (out - rule(f"input:asd3.{case['id']}.target", case["shape"])).square().mean()
    loss.backward()
    assert_recorded(out.detach(), numbers, f"{case['id']}/out", 1e-5)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    for key in case["grads"]:
        gradient = model.get_parameter(key).grad
        assert gradient is not None
        assert_recorded(gradient, numbers, f"{case['id']}/grad/{key}", 1e-4)


def test_every_case_is_checked_or_a_defect() -> None:
    print(f"a_sd3: {len(CASES)} of {len(WHOLE)} cases, the others are the defect `dual`")
    assert {case["variant"] for _, case in WHOLE} == {"plain", "rms", "dual", "dual_true_head_dim"}


def test_positions_are_the_middle_of_the_table() -> None:
    numbers = arrays("a_sd3_head")
    width = numbers["pos/crop_8x12"].shape[2]
    model = MMDiT(MMDiTShape(width, width // 64, 0, side=24))
    model.pos_embed = weight(
        settings("a_sd3_head").get("key_prefix", "") + "pos_embed", (1, 24**2, width), 0.02
    )
    for height, columns in ((8, 12), (20, 6)):
        found = model.positions(height // 2, columns // 2)
        assert_recorded(found, numbers, f"pos/crop_{height}x{columns}", 1e-6)
    with pytest.raises(ValueError, match="25 x 3 patches do not fit"):
        model.positions(25, 3)


def test_timesteps_are_embedded_as_recorded() -> None:
    embedded = sinusoids(torch.tensor([0, 1, 137.5, 999, 1000]), 256)
    torch.testing.assert_close(embedded, arrays("a_sd3_seed")["t_emb"], rtol=0, atol=1e-6)


CROPS = [case for case in cases("k_sd3_more_head") if "rate" in case]


@torch.no_grad()
@pytest.mark.parametrize("case", CROPS, ids=lambda case: case["id"])
def test_images_lie_where_recorded_ones_do_in_the_table_of_positions(case: dict[str, Any]) -> None:
    """Places are drawn as recorded ones were, from a generator of the same seed."""
    name, told = "k_sd3_more_head", settings("k_sd3_more_head")["model"]
    model = build(name, {**told, "heads": told["hidden"] // 64, "dual_attention_layers": []})
    if case["scaled_latent_sizes"]:
        sides = [size // PATCH for size in case["scaled_latent_sizes"]]
        model.scaled_positions = ScaledPositions(sides, told["hidden"])
    rng = torch.Generator().manual_seed(case["seed"])
    for number, (size, step) in enumerate(zip(case["latents"], case["steps"], strict=False)):
        side = len(model.table(size[0] // PATCH, size[1] // PATCH))
        corner = random_corner(tuple(size), side, case["rate"], rng)
        drawn = tuple(value for kind, *_, value in step["draws"] if kind == "randint")
        assert (corner or ()) == drawn
        x, context, y = (
            rule(f"input:ks3.{case['id']}.{what}{number}", shape)
            for what, shape in (
                ("x", (1, 16, *size)),
                ("ctx", (1, 5, told["context_dim"])),
                ("y", (1, told["adm"])),
            )
        )
        out = model(x, torch.tensor([300.0]), context, y, corner)
        assert_recorded(out, arrays(name), f"{case['id']}/out{number}", 1e-5)
    assert torch.rand(1, generator=rng).item() == case["steps"][-1]["next_rand"]


SCALED = [case for case in cases("k_sd3_more_head") if "queries" in case]


@pytest.mark.parametrize("case", SCALED, ids=lambda case: case["id"])
def test_tables_are_scaled_to_the_images_as_recorded(case: dict[str, Any]) -> None:
    numbers, name = arrays("k_sd3_more_head"), case["id"]
    tables = ScaledPositions(sides_of(case["resolutions"]), case["hidden"])
    assert [list(limit) for limit in tables.limits] == case["limits"]
    model = MMDiT(MMDiTShape(case["hidden"], case["hidden"] // 64, 0, side=1))
    model.scaled_positions = tables
    for side, length in case["tables"].items():
        table = tables.get_buffer(f"of_{side}")
        assert len(table) == length
        assert_recorded(table.flatten(0, 1)[None], numbers, f"{name}/table{side}", 2e-6)
    for query in case["queries"]:
        rows, columns = ((query[key] + 1) // PATCH for key in ("h", "w"))
        found = model.positions(rows, columns)
        assert_recorded(found, numbers, f"{name}/q{query['h']}x{query['w']}", 2e-6)
