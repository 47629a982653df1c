"""What a run has to do with the Hub besides its models: a repository for what it saves, and a state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sfumato.config.run.output.hub import HubConfig
from sfumato.config.run.run import Run
from sfumato.hub.access import access_for
from sfumato.hub.states import fetched_state
from sfumato.hub.uploading import Destination, Uploads, destination_for
from sfumato.training.core.observer import Observer
from sfumato.training.observers.hub_uploads import HubUploads
from sfumato.training.observers.model_card import ModelCard
from sfumato.training.run.hub.card import card_of
from sfumato.training.run.session import TrainingSession

_NONE = HubConfig()


def destination(run: Run) -> Destination | None:
    """Return the repository for what a run saves, where the token may write; None if there is none.

    Raises:
        UserError: the token may not, or the Hub cannot be reached.
    """
    found = destination_for(run.get(HubConfig, _NONE), access_for(run))
    if found is not None:
        found.check()
    return found


def state_folder(run: Run, resume: str) -> Path:
    """Return the folder of the state that `--resume` names, here or on the Hub."""
    if run.get(HubConfig, _NONE).resume_from_huggingface:
        return fetched_state(resume, access_for(run))
    return Path(resume)


def hub_observers(session: TrainingSession) -> Iterator[Observer]:
    """Yield what writes a card and what uploads, which is told of the run's end last."""
    uploads = _uploads(session, session.destination) if session.destination is not None else None
    if session.run.get(HubConfig, _NONE).model_card:
        written = uploads.add if uploads is not None else _nothing
        yield ModelCard(session.names.folder, card_of(session), written)
    if uploads is not None:
        yield uploads


def _uploads(session: TrainingSession, destination: Destination) -> HubUploads:
    config, names = session.run.get(HubConfig, _NONE), session.names
    return HubUploads(
        Uploads(destination),
        names.folder / f".{names.last().stem}.uploads",
        states=config.save_state_to_huggingface,
        is_async=config.async_upload,
    )


def _nothing(path: Path, name: str) -> None:
    pass
