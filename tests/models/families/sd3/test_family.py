"""The family of Stable Diffusion 3 on tiny models in the real file formats."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.errors import UserError
from sfumato.models.components.recognise import recognise
from sfumato.models.families.sd3.dropout import TextDropout, drop
from sfumato.models.families.sd3.family import Sd3Family
from sfumato.models.families.sd3.positions import random_corner
from sfumato.models.interface.family import DENOISER, VAE, EncoderUse
from sfumato.models.interface.publishing import Layout, Publishing, tensors_of
from sfumato.models.registry.whole_models import open_rewritable
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinySd3:
    return tiny.sd3(tmp_path_factory.mktemp("sd3"), hidden=64, form="5-large")


def test_a_file_is_told_by_its_tensors(files: tiny.TinySd3) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(files.path).items()}
    kind = recognise(shapes)
    assert kind is not None
    assert kind.name == "sd3"
    family = open_rewritable(files.path, "--model")
    assert family.identity.base_version == "sd3.5_large"
    assert family.identity.architecture == "stable-diffusion-3-5-large"


def test_encoders_of_a_single_file_and_of_files_of_their_own_are_the_same(
    files: tiny.TinySd3, tmp_path: Path
) -> None:
    apart = tiny.sd3(tmp_path, hidden=64, form="5-large", in_one=False)
    whole = Sd3Family({DENOISER: files.path})
    parts = Sd3Family({DENOISER: apart.path, **apart.encoders})
    assert list(whole.text_outputs) == list(parts.text_outputs) == ["clip_l", "clip_g", "t5xxl"]
    for part in whole.text_outputs:
        one, other = (each.load(part, torch.float32, CPU).state_dict() for each in (whole, parts))
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert all(not tensor.is_meta for tensor in one.values())
    identity = whole.load("clip_l", torch.float32, CPU).state_dict()["text_projection.weight"]
    assert torch.equal(identity, torch.eye(tiny.CLIP_WIDTH))  # the file has none


def test_scaled_positions_are_said_to_be_for_another_model(
    files: tiny.TinySd3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Sd3Family({DENOISER: files.path}).check([DENOISER])
    medium = tiny.sd3(tmp_path, hidden=64, form="5-medium")
    Sd3Family({DENOISER: medium.path}, scales_positions=True).check([DENOISER])
    assert caplog.messages == []
    Sd3Family({DENOISER: files.path}, scales_positions=True).check([DENOISER])
    (line,) = caplog.messages
    assert line.startswith(
        "--enable_scaled_pos_embed is meant for Stable Diffusion 3.5 medium; this is sd3.5"
    )


def test_what_is_asked_of_a_t5_that_is_not_there_is_said(
    files: tiny.TinySd3, caplog: pytest.LogCaptureFixture
) -> None:
    def check(use: EncoderUse) -> None:
        Sd3Family({DENOISER: files.path}, has_t5=False, encoder_use=use).check([DENOISER])

    check(EncoderUse(trained=["clip_l", "clip_g"]))
    assert caplog.messages == []
    with pytest.raises(UserError, match="--train_t5xxl: there is no T5-XXL to train"):
        check(EncoderUse(trained=["t5xxl"]))
    check(EncoderUse(cached=["t5xxl"], dtypes={"t5xxl": torch.bfloat16}, devices={"t5xxl": CPU}))
    told = [line.split(" has no effect")[0] for line in caplog.messages]
    assert told == ["--use_t5xxl_cache_only", "--t5xxl_dtype", "--t5xxl_device"]


def test_eight_bit_weights_lie_in_the_blocks(files: tiny.TinySd3) -> None:
    state = Sd3Family({DENOISER: files.path}).load(DENOISER, torch.float8_e4m3fn, CPU).state_dict()
    stored = {name for name, tensor in state.items() if tensor.dtype == torch.float8_e4m3fn}
    assert "joint_blocks.0.x_block.attn.qkv.weight" in stored
    assert all(name.startswith("joint_blocks.") for name in stored)
    assert state["pos_embed"].dtype == torch.bfloat16


def test_what_is_written_is_the_base_with_the_trained_part(files: tiny.TinySd3, tmp_path: Path) -> None:
    family, path = Sd3Family({DENOISER: files.path}), tmp_path / "written.safetensors"
    model = family.load(DENOISER, torch.float32, CPU)
    with torch.no_grad():
        model.get_parameter("final_layer.linear.bias").add_(1)
    family.write({DENOISER: tensors_of(model)}, path, Publishing())
    before, after = load_file(files.path), load_file(path)
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["model.diffusion_model.final_layer.linear.bias"]
    assert family.written_bytes({}, Publishing()) == pytest.approx(path.stat().st_size, rel=0.05)
    family.write({DENOISER: tensors_of(model)}, tmp_path / "one.safetensors", Publishing(Layout.PART_FILES))
    assert load_file(tmp_path / "one.safetensors").keys() == model.state_dict().keys()


def test_parts_of_other_sizes_are_refused_in_one_line(files: tiny.TinySd3, tmp_path: Path) -> None:
    narrow = tmp_path / "t5.safetensors"
    save_file(tiny.random_weights(dict(tiny.t5()), 0), narrow)
    family = Sd3Family({DENOISER: files.path, "t5xxl": narrow})
    with pytest.raises(UserError, match=r"--t5xxl is .*: its output is 48 wide, but the denoiser takes 256"):
        family.check([DENOISER, "t5xxl"])
    with pytest.raises(UserError, match=r"--clip_g is .*: it seems to be a T5 text encoder; give a CLIP-G"):
        Sd3Family({DENOISER: files.path, "clip_g": narrow}).check(["clip_g"])
    with pytest.raises(UserError, match="--vae is not given"):
        Sd3Family({}).check([VAE])


def test_dropped_captions_are_zeros_in_all_that_an_encoder_says() -> None:
    words = {name: torch.ones(64, 2) for name in ("l_out", "l_pooled", "g_out", "g_pooled", "t5_out")}
    kept = drop(words, TextDropout(), rng := torch.Generator().manual_seed(0))
    assert all(torch.equal(kept[name], words[name]) for name in words)
    assert torch.equal(rng.get_state(), torch.Generator().manual_seed(0).get_state())
    dropped = drop(words, TextDropout(clip_g=0.25, t5=1.0), rng)
    assert 4 < int((dropped["g_out"][:, 0] == 0).sum()) < 28
    assert torch.equal(dropped["g_out"], dropped["g_pooled"])
    assert not dropped["t5_out"].any()
    assert dropped["l_out"].all()


def test_positions_come_from_anywhere_in_the_table_in_a_share_of_the_steps() -> None:
    rng = torch.Generator().manual_seed(0)
    corners = [random_corner((8, 12), 16, 0.5, rng) for _ in range(200)]
    assert 60 < sum(corner is None for corner in corners) < 140
    assert {top for top, _ in filter(None, corners)} == set(range(13))
    assert {left for _, left in filter(None, corners)} == set(range(11))
    assert random_corner((8, 12), 16, 1.0, None) is None
