"""What is saved reaches its repository in order, and nothing there ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfumato.config.run.output.hub import HubConfig
from sfumato.errors import UserError
from sfumato.hub.access import HubAccess
from sfumato.hub.card import Card, Sample
from sfumato.hub.states import fetched_state
from sfumato.hub.uploading import Destination, Uploads, destination_for
from sfumato.training.core.events import Ended, ImageMade, Saved
from sfumato.training.observers.hub_uploads import HubUploads
from sfumato.training.observers.model_card import ModelCard
from tests.hub.stand_in import READ_ONLY, TOKEN, WRONG, Hub, Repo

# The client speaks to its HTTP library in a way that is out of date there.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def destination(token: str | None = TOKEN, repo: str = "me/it", **options: str) -> Destination:
    given: dict[str, Any] = {f"huggingface_{name}": value for name, value in options.items()}
    config = HubConfig(huggingface_repo_id=repo, **given)
    found = destination_for(config, HubAccess(token))
    assert found is not None
    return found


class Case:
    """A run's uploads; `waits` has the pauses that were asked for."""

    def __init__(self, folder: Path, *, is_async: bool = False, states: bool = True) -> None:
        self.folder, self.waits = folder, list[float]()
        self.uploads = Uploads(destination(path_in_repo="runs/"), self.waits.append)
        waiting = folder / ".waiting"
        self.observer = HubUploads(self.uploads, waiting, states=states, is_async=is_async)

    def save(self, step: int, state: bool = False, words: bool = False) -> Path:
        path = self.folder / f"it-{step}.safetensors"
        path.write_bytes(b"%d" % step * 100)
        folder = self.folder / f"it-{step}-state" if state else None
        if folder is not None:
            folder.mkdir()
            (folder / "state.json").write_text("{}")
        others = (self.folder / f"it-{step}-words",) if words else ()
        for other in others:
            other.mkdir()
            (other / "zxqk.safetensors").write_bytes(b"word")
        self.observer.saved(Saved(step, path, folder, others))
        return path


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        (None, "me/it", "there is no access token; log in with `hf auth login`, or set HF_TOKEN"),
        (WRONG, "me/it", "the access token is not valid; make one at https://huggingface.co/settings/tokens"),
        (READ_ONLY, "me/it", "the access token may only read"),
        (TOKEN, "you/it", "is that of me, who is no member of you; give me/it, or log in"),
    ],
)
def test_a_token_that_will_not_do_is_found_before_anything_else(
    hub: Hub, token: str | None, repo: str, said: str
) -> None:
    with pytest.raises(UserError, match=f"--huggingface_repo_id is {repo}: .*{said}"):
        destination(token, repo).check()
    assert not hub.repos


@pytest.mark.parametrize(("visibility", "is_private"), [(None, True), ("private", True), ("public", False)])
def test_a_repository_is_made_where_there_is_none(hub: Hub, visibility: str | None, is_private: bool) -> None:
    given = {} if visibility is None else {"repo_visibility": visibility}
    for _ in range(2):
        destination(repo="us/it", **given).make()
    assert hub.repos["us/it"].is_private == is_private
    assert len(hub.asked("repos/create")) == 1


def test_options_that_name_no_repository_are_refused() -> None:
    with pytest.raises(UserError, match="--huggingface_repo_id is it; write it as user/name"):
        destination(repo="it")
    with pytest.raises(
        UserError, match="--huggingface_repo_type is modle; give one of model, dataset, space"
    ):
        destination(repo_type="modle")


@pytest.mark.parametrize("is_async", [False, True])
def test_files_what_lies_beside_them_and_states_go_up_in_order_under_their_names(
    hub: Hub, tmp_path: Path, is_async: bool
) -> None:
    hub.repos["me/it"] = Repo()
    case = Case(tmp_path, is_async=is_async)
    case.save(1, state=True, words=True).unlink()  # it made room before its turn came
    case.save(2)
    case.observer.ended(Ended(2, "finished"))
    assert list(hub.repos["me/it"].files) == [
        "runs/it-1.safetensors",
        "runs/it-1-words/zxqk.safetensors",
        "runs/it-1-state/state.json",
        "runs/it-2.safetensors",
    ]
    assert hub.repos["me/it"].files["runs/it-1.safetensors"] == b"1" * 100
    assert not (tmp_path / ".waiting").exists()


def test_an_upload_is_tried_again_and_one_that_fails_is_told_at_the_end(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repos["me/it"] = Repo()
    case = Case(tmp_path)
    hub.failures["commit"] = [503, 503]
    case.save(1)
    assert case.waits == [2, 8]
    hub.failures["commit"] = [503] * 4
    case.save(2)
    hub.failures["commit"] = [403]
    path = case.save(3)
    assert case.waits == [2, 8, 2, 8, 30]
    case.save(4)
    case.observer.ended(Ended(4, "finished"))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.partition(":")[0] for line in warnings[:2]] == ["not uploaded"] * 2
    assert warnings[2].startswith(
        "2 of 4 uploads failed: runs/it-2.safetensors, runs/it-3.safetensors; upload"
    )
    assert warnings[2].endswith(f"&& hf upload me/it {path} runs/it-3.safetensors")
    assert set(hub.repos["me/it"].files) == {"runs/it-1.safetensors", "runs/it-4.safetensors"}


def test_just_the_state_that_is_asked_for_is_fetched(hub: Hub) -> None:
    names = ("it-state", "it-state-2", "it-stateful")
    hub.repos["me/it"] = Repo({f"runs/{name}/state.json": name.encode() for name in names})
    folder = fetched_state("me/it/runs/it-state:main:model", HubAccess(TOKEN))
    assert (folder / "state.json").read_text() == "it-state"
    assert [path.name for path in folder.parent.iterdir()] == ["it-state"]
    for text, said in (
        ("me/it/runs/it", "has no folder runs/it; check the name"),
        ("me/it", "write it as user/name/folder"),
        ("me/it/runs/it-state:main:modle", "type: model, dataset, space"),
    ):
        with pytest.raises(UserError, match=f"--resume is {text}.*{said}"):
            fetched_state(text, HubAccess(TOKEN))


CARD = Card("it", None, "a/base", "a/base", "mit", ["sks"], ["lora"], {"seed": 1})


def test_a_card_tells_base_licence_words_and_samples(tmp_path: Path) -> None:
    written: list[str] = []
    card = ModelCard(tmp_path, CARD, lambda _, name: written.append(name))
    for step in (1, 2):
        image = tmp_path / "sample" / f"it_{step}.png"
        card.image(ImageMade(step, 0, 'a "sks" | cat', image))
    card.ended(Ended(2, "finished", (tmp_path / "it.safetensors",)))
    text = (tmp_path / "README.md").read_text("utf-8")
    assert text.startswith('---\nlicense: "mit"\nbase_model: "a/base"\ninstance_prompt: "sks"\n')
    assert '"output": {"url": "sample/it_2.png"}' in text
    assert "it_1.png" not in text
    assert "| seed | 1 |" in text
    assert '![a "sks" \\| cat](sample/it_2.png)' in text
    assert "- `it.safetensors`" in text
    assert written == ["README.md", "sample/it_2.png"]


def test_a_card_of_somebody_elses_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "README.md").write_text("mine")
    ModelCard(tmp_path, CARD, lambda *_: None).ended(Ended(1, "finished", (tmp_path / "it.pt",)))
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "stays as it is; move it to get a model card" in caplog.text


def test_a_card_without_anything_is_one_all_the_same() -> None:
    text = Card("it", None, "base.ckpt", None, None, [], [], {}, samples=[Sample("p", "a.png")]).text()
    assert "Base model: base.ckpt. Licence: not given" in text
