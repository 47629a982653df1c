"""Which parts of a whole model a run trains, and at which rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.trained_parts import TrainedPartsConfig
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, Family, NumbersBlocks, encoder_use
from sfumato.training.trainables import ParameterGroup


@dataclass(frozen=True)
class PartRates:
    """The learning rates of a whole model.

    Attributes:
        denoiser: 0 where it stays as it is.
        blocks: of each of its blocks, counted through; none where it has one rate.
        encoders: of each text encoder that is trained, by its name.
        last_encoder_step: the last step that changes these; None for that of the run.
        num_still: blocks at the end of the denoiser that stay as they are.
    """

    denoiser: float
    blocks: tuple[float, ...] = ()
    encoders: Mapping[str, float] = field(default_factory=dict)
    last_encoder_step: int | None = None
    num_still: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that are trained."""
        return (DENOISER, *self.encoders) if self.denoiser else tuple(self.encoders)

    def groups(self, family: Family, models: Mapping[str, nn.Module]) -> list[ParameterGroup]:
        """Return the weights of `models` on which the loss depends, by their rates.

        Args:
            models: the parts that are trained, by name.
        """
        groups = list(self._of_denoiser(family, models[DENOISER])) if self.denoiser else []
        for number, part in enumerate(family.text_outputs, start=1):
            if part in self.encoders:
                weights = list(family.weights_in_use(part, models[part]).values())
                name, last = f"text_encoder{number}", self.last_encoder_step
                groups.append(ParameterGroup(weights, self.encoders[part], name, last_step=last))
        return groups

    def _of_denoiser(self, family: Family, model: nn.Module) -> Iterator[ParameterGroup]:
        weights = self._moving(family, model)
        if not self.blocks:
            yield ParameterGroup(list(weights.values()), self.denoiser, "unet")
            return
        assert isinstance(family, NumbersBlocks)
        numbers = family.block_numbers(model)
        for block, rate in enumerate(self.blocks):
            own = [weight for name, weight in weights.items() if numbers[name] == block]
            if rate:
                yield ParameterGroup(own, rate, f"block{block}")

    def _moving(self, family: Family, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the denoiser's weights without those of the last blocks, where these stay as they are."""
        blocks = family.blocks(DENOISER, model)
        still = blocks[max(0, len(blocks) - self.num_still) :]
        held = {id(weight) for block in still for weight in block.parameters()}
        weights = family.weights_in_use(DENOISER, model)
        return {name: weight for name, weight in weights.items() if id(weight) not in held}


def rates_for(run: Run, family: Family, *, trains_encoders: bool) -> PartRates:
    """Return the rates that a run's options give.

    Args:
        trains_encoders: whether text encoders are trained where no option stops that.

    Raises:
        UserError: nothing would be trained, or the denoiser has another number of blocks.
    """
    config, rate = run.get(TrainedPartsConfig, TrainedPartsConfig()), run[OptimizerConfig].learning_rate
    last = config.stop_text_encoder_training
    is_cut_off = last is not None and last <= 0
    encoders = _encoder_rates(config, family, rate) if trains_encoders and not is_cut_off else {}
    blocks = _block_rates(config, family) if rate else ()
    has_denoiser = any(blocks) if blocks else bool(rate)
    if not (has_denoiser or encoders):
        zero = "--learning_rate is 0" if not blocks else f"--block_lr is {config.block_lr}"
        raise UserError(f"{zero}, so nothing would be trained; raise it")
    if last is not None and not has_denoiser:
        raise UserError(
            f"--stop_text_encoder_training {last} leaves nothing to train after that, for the denoiser stays "
            "as it is; leave it out and say --max_train_steps"
        )
    num_still = config.num_last_block_to_freeze or 0
    return PartRates(rate if has_denoiser else 0.0, blocks, encoders, last, num_still)


def _encoder_rates(config: TrainedPartsConfig, family: Family, rate: float) -> dict[str, float]:
    """Return the rate of each text encoder that is trained, by its name."""
    asked = encoder_use(family).trained
    given = zip(family.text_outputs, config.encoder_rates, strict=False)
    rates = {part: rate if own is None else own for part, own in given if asked is None or part in asked}
    return {part: own for part, own in rates.items() if own}


def without_effect(run: Run, rates: PartRates) -> Iterator[str]:
    """Yield a line for each rate that was given for what is not trained."""
    config = run.get(TrainedPartsConfig, TrainedPartsConfig())
    if config.block_rates and not rates.blocks:
        yield "--block_lr has no effect: --learning_rate is 0, which leaves the denoiser as it is"
    if config.num_last_block_to_freeze and not rates.denoiser:
        yield "--num_last_block_to_freeze has no effect: --learning_rate is 0, so that no block is trained"
    last = config.stop_text_encoder_training
    if any(config.encoder_rates) and last is not None and last <= 0:
        yield f"rates of text encoders have no effect with --stop_text_encoder_training {last}"


def _block_rates(config: TrainedPartsConfig, family: Family) -> tuple[float, ...]:
    rates = config.block_rates
    num_blocks = family.num_blocks if isinstance(family, NumbersBlocks) else 0
    if rates and len(rates) != num_blocks:
        raise UserError(f"--block_lr has {len(rates)} rates, and the denoiser has {num_blocks} blocks")
    return rates
