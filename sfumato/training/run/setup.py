"""Put a run together: all that can be wrong is found here, before any weight is loaded."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sfumato.config.public import public_values
from sfumato.config.rules.strictness import complain, is_strict
from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.distributed import DistributedConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.output.preview import PreviewConfig
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.length import LengthConfig
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.schedule import ScheduleConfig
from sfumato.data.batches import dataset, regularisation
from sfumato.data.batches.loader import TrainingData
from sfumato.data.config import blueprint
from sfumato.data.custom import user_set
from sfumato.data.custom.returned_batches import Geometry
from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.models.interface.family import DENOISER, VAE, Family, TakesResolutions, ends_in_pure_noise
from sfumato.models.interface.publishing import Layout
from sfumato.models.registry.families import family_for
from sfumato.training.core import distributed, encoders, memory, precision
from sfumato.training.core.distributed import Processes
from sfumato.training.core.memory_account import Account
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Plan, plan_for
from sfumato.training.observers import preview, saving, trackers
from sfumato.training.observers.saving import Names
from sfumato.training.observers.warnings import WarningLog
from sfumato.training.run import outputs, weight_updates
from sfumato.training.run.account import account, foresee
from sfumato.training.run.agreement import require_same
from sfumato.training.run.execution import execute
from sfumato.training.run.hub import results
from sfumato.training.run.session import TrainingSession
from sfumato.training.state import resume
from sfumato.training.state.resume import State
from sfumato.training.trainables import TrainingMethod, Volume, inpainting, method_for
from sfumato.training.trainables.words.new_word import unheard
from sfumato.training.update import optimizers, schedulers

logger = logging.getLogger(__name__)


def train(
    run: Run, observers: Sequence[Observer] = (), *, signals: bool = False, bar: bool = True
) -> list[Path]:
    """Train as `run` says, in any thread; return the weights that were saved, in order.

    The weights of the last step come last. In a run of several processes the first one saves, and the
    others return nothing. An observer or the control file may end the run early: it is saved, and what
    was saved is returned.

    Args:
        observers: watch the run, and may ask it for something (`Started.commands`); see docs/observers.md.
        signals: let Ctrl-C and SIGTERM save and end the run; in the main thread only.
        bar: show the progress on standard error.

    Raises:
        UserError: something is wrong that the user can mend; mostly before any weight is loaded.
        StoppedError: a signal ended the run.
    """
    processes = distributed.start(run[DistributedConfig])
    try:
        with WarningLog().listening() as warnings:
            session = prepare(run, processes)
            outputs.check_existing(session)
            foresee(session)
            if session.destination is not None:
                session.destination.make()
            return execute(session, observers, warnings=warnings, signals=signals, bar=bar)
    finally:
        processes.finish()


def count(run: Run) -> Account:
    """Return what a run would hold in memory, on a graphics card if this machine has no other device.

    Raises:
        UserError: the run cannot work.
    """
    processes = distributed.start(run[DistributedConfig])
    try:
        kind = processes.device.type
        return account(prepare(run, processes), "cuda" if kind == "cpu" else kind)
    finally:
        processes.finish()


def prepare(run: Run, processes: Processes) -> TrainingSession:
    """Check options, headers, images and disk space; return the run, ready to load its models.

    Raises:
        UserError: the run cannot work.
    """
    started_at = time.time()
    trackers.check(run[TrackingConfig])
    destination = results.destination(run) if processes.is_first else None
    run, overridden = precision.for_device(run, processes.device)
    complain(run, overridden)
    policy = precision.precision_for(run[PrecisionConfig], processes.device)
    optimizer = _optimizer(run, processes, policy)
    family = _family(run)
    run = _following(run, family)
    names = saving.names_for(run[SavingConfig])
    complain(run, schedulers.settings_without_effect(run[ScheduleConfig], optimizer))
    state = _state(run, optimizer)
    seed = _seed(run, state, processes)
    method = method_for(run, family)
    complain(run, list(inpainting.without_effect(family, DENOISER in method.trained_parts)))
    encoders.check(family, policy, method.trained_parts)
    volume = _volume(run, method, policy, optimizer, state)
    swap = _swap(run, family, processes)
    previews = preview.plan(run[PreviewConfig], run[NoiseConfig], family)
    training_set = _training_set(run, family, seed, volume.size_multiple)
    plan = _plan(run, training_set, optimizer, processes, is_swapped=swap is not None)
    keeping = saving.keeping_for(run[SavingConfig], plan)
    if processes.is_first:
        num_bytes = keeping.num_bytes(plan, volume.file_bytes, _state_bytes(volume, optimizer, policy))
        outputs.check(run, names, plan, previews, num_bytes, method.project)
    session = TrainingSession(
        run=run,
        processes=processes,
        family=family,
        method=method,
        precision=policy,
        optimizer=optimizer,
        training_set=training_set,
        plan=plan,
        names=names,
        keeping=keeping,
        seed=seed,
        started_at=started_at,
        state=state,
        previews=previews,
        swap=swap,
        finished=_finished(run[LengthConfig], plan, state, names),
        destination=destination,
    )
    session.check_caching()
    require_same(session)
    _tell_other_data(session)
    _report(training_set, plan, seed)
    return session


def _optimizer(run: Run, processes: Processes, policy: precision.Precision) -> optimizers.OptimizerPlan:
    """Return the optimizer that a run asks for, once it and its schedule are known to work."""
    plan = optimizers.plan(run[OptimizerConfig], processes.device)
    policy.check_optimizer(plan.kind, plan.arguments)
    weight_updates.check(run, plan)
    schedulers.check(run[ScheduleConfig], plan, run[OptimizerConfig].learning_rate)
    return plan


def _family(run: Run) -> Family:
    """Return the model that a run trains, once its files are known to be what the run takes them for."""
    decided = inpainting.decided(run)
    family = family_for(decided)
    family.check((DENOISER, VAE, *family.text_outputs))
    inpainting.check(decided, family)
    return family


def _volume(
    run: Run,
    method: TrainingMethod,
    policy: precision.Precision,
    optimizer: optimizers.OptimizerPlan,
    state: State | None,
) -> Volume:
    """Return how much is trained and saved, once it is known to suit the optimizer and the state."""
    volume = method.check(policy)
    complain(run, optimizer.check_rates(volume.groups))
    if state is not None:
        state.require_shapes(volume.shapes)
    return volume


def _plan(
    run: Run,
    training_set: TrainingData,
    optimizer: optimizers.OptimizerPlan,
    processes: Processes,
    *,
    is_swapped: bool,
) -> Plan:
    """Return how many steps there are, once what depends on their number is known to work."""
    plan = plan_for(run[LengthConfig], training_set.num_batches, processes.world)
    training_set.max_steps = plan.num_steps
    rate = run[OptimizerConfig].learning_rate
    schedulers.check_course(run[ScheduleConfig], optimizer, rate, plan.num_steps)
    weight_updates.check_steps(run, plan, processes.world, is_swapped=is_swapped)
    return plan


def _swap(run: Run, family: Family, processes: Processes) -> memory.Swap | None:
    arguments = run.get(NetworkConfig, NetworkConfig()).network_args or ()
    return memory.plan(run[MemoryConfig], family, processes.device, arguments)


def _tell_other_data(session: TrainingSession) -> None:
    """Say how the data differ from those of the run that saved the state."""
    if session.state is not None:
        for line in session.state.data_differences(session.data_record):
            logger.warning("resuming %s with other data: %s", session.state.folder, line)


def _state_bytes(volume: Volume, optimizer: optimizers.OptimizerPlan, policy: precision.Precision) -> int:
    """Return the size of a state: what the optimizer remembers, and weights that no saved file holds."""
    num_bytes = optimizer.state_bytes(volume.num_weights)
    if not volume.file_holds_all or optimizer.is_schedule_free:
        num_bytes += volume.num_weights * policy.trained.itemsize
    return num_bytes


def _following(run: Run, family: Family) -> Run:
    """Return the run with what the base's own files say of its noise schedule, and of how it is saved."""
    if ends_in_pure_noise(family) and not run[NoiseConfig].zero_terminal_snr:
        logger.info(
            "zero_terminal_snr is set: the base's files say that its noise schedule ends in pure noise"
        )
        run = run.with_sections(replace(run[NoiseConfig], zero_terminal_snr=True))
    if run[SavingConfig].save_model_as is None and family.saved_as is Layout.FOLDER:
        logger.info("save_model_as is set to diffusers_safetensors: the base is a folder, too")
        run = run.with_sections(replace(run[SavingConfig], save_model_as="diffusers_safetensors"))
    return run


def _training_set(run: Run, family: Family, seed: int, size_multiple: int) -> TrainingData:
    """Return the images of a run, whose sides are multiples of so many pixels and of what the model needs."""
    multiple = math.lcm(family.latents.downscale * family.latents.patch, size_multiple)
    if run[DatasetConfig].dataset_class:
        _tell_resolutions(family, [run[ImageConfig].size or family.identity.resolution])
        return _user_set(run, family, multiple, seed)
    stored = family.caches
    plans = blueprint.plans(
        run,
        size_multiple=multiple,
        seed=seed,
        takes_latents=run[CachingConfig].cache_latents_to_disk and stored.has_latents_alone,
        latents_ending=stored.latents,
    )
    _tell_resolutions(family, [plan.buckets.resolution for plan in plans])
    masked = any(s.alpha_mask or s.mask_dir for plan in plans for s in plan.subsets)
    if run[LossConfig].masked_loss and not masked:
        line = "--masked_loss has no effect without masks: name mask_dir or set alpha_mask"
        complain(run, [line])
    found = dataset.read(plans, seed, strict=is_strict(run))
    for line in found.short_batches():
        logger.warning(line)
    if line := regularisation.offer(run, found.sets):
        logger.info(line)
    complain(run, list(unheard(run, found)))
    return found


def _tell_resolutions(family: Family, resolutions: Sequence[tuple[int, int]]) -> None:
    if isinstance(family, TakesResolutions):
        family.take_resolutions(resolutions)


def _user_set(run: Run, family: Family, multiple: int, seed: int) -> TrainingData:
    space = family.latents
    geometry = Geometry(
        space.channels, space.downscale, multiple, None if family.caches.is_scaled else space.scaled
    )
    made = user_set.read(run, geometry, seed)
    complain(run, user_set.options_without_effect(run, made.accepted))
    if run[LossConfig].masked_loss and made.example.masks is None:
        line = "--masked_loss has no effect without masks: let --dataset_class return alpha_masks"
        complain(run, [line])
    return made


def _state(run: Run, optimizer: optimizers.OptimizerPlan) -> State | None:
    folder = run[SavingConfig].resume
    if not folder:
        return None
    state = resume.read_state(results.state_folder(run, folder))
    state.require_optimizer(optimizer.kind)
    for line in state.differences(public_values(run)):
        logger.warning("resuming %s with other options: %s", folder, line)
    return state


def _seed(run: Run, state: State | None, processes: Processes) -> int:
    given = run[LengthConfig].seed
    if state is not None and given in (None, state.seed):
        return state.seed
    if given is not None:
        return given
    return processes.from_first(random.SystemRandom().randint(0, 2**32 - 1))


def _finished(config: LengthConfig, plan: Plan, state: State | None, names: Names) -> int:
    """Return how many steps count as done: a state knows; otherwise --initial_step or --initial_epoch say."""
    asked = config.initial_step or (config.initial_epoch or 1) * plan.steps_per_epoch - plan.steps_per_epoch
    if state is not None:
        if asked:
            logger.warning("--initial_step and --initial_epoch are ignored: the state knows its position")
        asked = state.finished
    elif not config.skip_until_initial_step:
        asked -= asked % plan.steps_per_epoch  # only the epoch's number moves on
    if state is not None and asked == plan.num_steps and not names.last().exists():
        return asked  # what is left to do is to save
    if asked >= plan.num_steps:
        raise UserError(
            f"{asked} steps are done and the run has {plan.num_steps}; "
            "raise --max_train_steps or --max_train_epochs to train on"
        )
    return asked


def _report(data: TrainingData, plan: Plan, seed: int) -> None:
    if data.validation is not None:
        num = data.validation.num_train_images
        logger.info(
            "%s for validation: the loss is measured on them, and they are not trained", counted(num, "image")
        )
    logger.info(
        "%s (with repeats) and %s, %s an epoch, %s, %s, seed %d",
        counted(data.num_train_images, "image"),
        counted(data.num_reg_images, "regularisation image"),
        counted(plan.num_batches, "batch", "batches"),
        counted(plan.num_epochs, "epoch"),
        counted(plan.num_steps, "step"),
        seed,
    )
