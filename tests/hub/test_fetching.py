"""Names become paths: only what is needed is fetched, once, and what goes wrong is one line that helps."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, file_download

from sfumato.checkpoints.tensors import open_tensors, serialized
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.run import Run
from sfumato.data.config import descriptions
from sfumato.errors import UserError
from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.hub.fetching import located
from sfumato.hub.selection import Wanted
from sfumato.models.components import tokenizers
from tests import tiny
from tests.hub.stand_in import COMMIT, READ_ONLY, WRONG, Hub, Repo


def weights(name: str = "x", num: int = 1000) -> bytes:
    header, data = serialized({name: torch.ones(num)})
    return header + b"".join(data)


PIPELINE = {
    "model_index.json": b"{}",
    "README.md": b"# a model",
    "model.safetensors": weights(),
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": weights(),
    "unet/diffusion_pytorch_model.fp16.safetensors": weights(),
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "vae/diffusion_pytorch_model.bin": b"pickle",
    "tokenizer/vocab.json": b"{}",
    "safety_checker/model.safetensors": weights(),
}
WANTED = Wanted(("unet", "vae"), settings=("tokenizer", "scheduler"))


def fetched(name: str, wanted: Wanted = WANTED, access: HubAccess = ANYBODY) -> Path:
    path = located(name, "--base", wanted, access)
    assert path is not None
    return path


def complaint(name: str, wanted: Wanted = WANTED, access: HubAccess = ANYBODY) -> str:
    with pytest.raises(UserError) as caught:
        fetched(name, wanted, access)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_the_parts_that_are_used_are_fetched_and_no_variants(hub: Hub) -> None:
    hub.repos["user/name"] = Repo(PIPELINE)
    folder = fetched("user/name")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "tokenizer/vocab.json",
    }


def test_what_is_in_the_cache_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    hub.repos["user/name"] = Repo({"sub/a.safetensors": weights(), "sub/b.safetensors": weights()})
    first = fetched("user/name@main/sub/a.safetensors")
    hub.log.clear()
    assert fetched("user/name/sub/a.safetensors") == first
    assert fetched("user/name/sub/a.safetensors", access=HubAccess(is_refused=True)) == first
    assert hub.log == []
    said = complaint("user/name/sub/b.safetensors", access=HubAccess(is_refused=True))
    assert said.startswith("--base is user/name/sub/b.safetensors, which is no path here, nor in the hub's")
    assert "`hf download user/name`" in said


def test_a_path_that_exists_wins_and_what_reads_like_one_is_not_looked_up(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["user/name"] = Repo({"a.safetensors": weights()})
    monkeypatch.chdir(tmp_path)
    Path("user/name").mkdir(parents=True)
    for path in ("user/name", "user/nothing", "models/a.safetensors", "/user/name", "../user/name", "name"):
        assert fetched(path) == Path(path)
    assert hub.log == []


def test_all_shards_come_along(hub: Hub) -> None:
    files = {f"unet/model-0000{i}-of-00002.safetensors": weights(f"x{i}") for i in (1, 2)}
    names = {f"x{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    index = f'{{"weight_map": {names!s}}}'.replace("'", '"').encode()
    hub.repos["user/name"] = Repo({**files, "unet/model.safetensors.index.json": index})
    with open_tensors(fetched("user/name", Wanted(("unet",))) / "unet") as reader:
        assert reader.keys() == ["x1", "x2"]


def test_the_one_file_of_a_repository_is_taken_and_of_several_the_names_are_told(hub: Hub) -> None:
    hub.repos["user/one"] = Repo({"a.safetensors": weights(), "a.ckpt": b"pickle"})
    hub.repos["user/two"] = Repo({"a.safetensors": weights(), "b/c.safetensors": weights()})
    hub.repos["user/none"] = Repo({"a.gguf": b"GGUF"})
    assert fetched("user/one").name == "a.safetensors"
    candidates = "user/two/a.safetensors, user/two/b/c.safetensors"
    assert complaint("user/two").endswith(f"several files could be meant; give one of {candidates}")
    assert "has no weights that can be read here" in complaint("user/none")


def test_another_kind_of_model_is_refused_by_its_header_alone(hub: Hub) -> None:
    hub.repos["user/name"] = Repo({"a.safetensors": weights("lora", 100_000)})
    said = complaint("user/name", Wanted(refusal=lambda shapes: f"it holds {[*shapes]} {shapes['lora']}"))
    assert said == "--base is user/name, which is no path here: it holds ['lora'] (100000,)"
    assert len(hub.asked("resolve")) == 1
    assert hub.asked("resolve")[0].endswith("bytes=0-100000")


def test_a_download_that_broke_off_is_gone_on_with(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.repos["user/name"] = Repo({"a.safetensors": weights()})
    hub.cut_after["a.safetensors"] = 1000
    path = fetched("user/name")
    assert path.read_bytes() == weights()
    assert hub.asked("GET /user/name/resolve")[-1].endswith("bytes=1000-")


def test_files_that_were_fetched_before_a_break_are_kept(hub: Hub) -> None:
    hub.repos["user/name"] = Repo(PIPELINE)
    hub.failures[f"GET /user/name/resolve/{COMMIT}/vae"] = [503]
    assert "answers 503; start again a little later: every file that was" in complaint("user/name")
    hub.log.clear()
    fetched("user/name")
    assert not hub.asked("GET /user/name/resolve")[:-1]
    assert hub.asked("GET /user/name/resolve")[0].endswith("vae/diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("name", "repo", "access", "said"),
    [
        (
            "user/name",
            Repo({"a.safetensors": b"x"}, is_gated=True),
            ANYBODY,
            "it is gated; accept its licence at",
        ),
        (
            "user/name",
            Repo(is_private=True),
            ANYBODY,
            "or it is private; check the name, or log in with `hf auth",
        ),
        ("user/other", Repo(), ANYBODY, "there is no model http"),
        ("user/name", Repo(), HubAccess(WRONG), "the access token is not valid; make one at https://hugg"),
        ("user/name@old", Repo(), ANYBODY, "has no revision old; see"),
        ("user/name/b.safetensors", Repo(), ANYBODY, "has no weights in b.safetensors that can be read"),
    ],
)
def test_what_is_refused_is_one_line_with_the_address(
    hub: Hub, name: str, repo: Repo, access: HubAccess, said: str
) -> None:
    hub.repos["user/name"] = repo
    line = complaint(name, access=access)
    assert line.startswith(f"--base is {name}, which is no path here: ")
    assert said in line
    assert (
        f"{hub.address}/{'/'.join(name.partition('@')[0].split('/')[:2])}" in line
        or "settings/tokens" in line
    )


def test_a_token_opens_what_is_gated(hub: Hub) -> None:
    hub.repos["user/name"] = Repo({"a.safetensors": weights()}, is_gated=True)
    assert fetched("user/name", access=HubAccess(READ_ONLY)).is_file()


def test_a_hub_in_trouble_is_no_trouble_for_what_is_here(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.repos["user/name"] = Repo({"a.ckpt": b"pickle"})
    path = fetched("user/name")
    hub.failures["GET"] = [502]
    assert fetched("user/name") == path
    assert "its copy in the cache is taken" in caplog.text


def test_a_full_disk_is_said_with_what_helps(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["user/name"] = Repo({"a.safetensors": weights()})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", full)
        said = f"the disk of {tmp_path / 'cache'} is full; free some space, or set HF_HOME"
        assert said in complaint("user/name")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 100))
    assert "has 100 bytes free, but fetching user/name needs" in complaint("user/name")
    assert not hub.asked("GET /user/name/resolve")


def test_no_network_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub cannot be reached (ConnectError); check the network, or" in complaint("user/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "--offline or HF_HUB_OFFLINE keeps it so" in complaint("user/name")


def test_a_tokenizer_comes_without_the_weights_beside_it(hub: Hub, tmp_path: Path) -> None:
    tiny._clip_tokenizer(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    hub.repos[tokenizers.CLIP_L] = Repo({**files, "model.safetensors": weights()})
    assert tokenizers.load_clip()(["a cat"], 77).ids.shape == (1, 77)
    assert not hub.asked("model.safetensors")
    hub.log.clear()
    tokenizers.load_clip()
    assert hub.log == []


def test_a_data_set_is_fetched_with_all_that_is_in_its_folder(hub: Hub, tmp_path: Path) -> None:
    tiny.pictures(tmp_path / "images", 2)
    files = {f"cats/1_cat/{path.name}": path.read_bytes() for path in (tmp_path / "images").iterdir()}
    hub.repos["user/data"] = Repo({**files, "dogs/1_dog/a.png": b"x", "cats2/a.png": b"x"})
    config = DatasetConfig(train_data_dir="user/data@main/cats")
    [described] = descriptions.describe(Run("x", "", [config]))
    folder = described.subsets[0]["image_dir"]
    assert {path.name for path in folder.iterdir()} == {name.rpartition("/")[2] for name in files}
    assert [path.name for path in folder.parent.parent.iterdir()] == ["cats"]
    assert hub.asked("GET /api/datasets/user/data/revision/main")
    description = tmp_path / "data.toml"
    description.write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "user/none@main"\n')
    with pytest.raises(
        UserError, match="image_dir is user/none@main, which is no path here: there is no data"
    ):
        descriptions.describe(Run("x", "", [DatasetConfig(dataset_config=description)]))
