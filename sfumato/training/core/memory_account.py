"""What a run holds in memory, phase by phase, and how people and programs are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ENCODING_IMAGES = "encoding images"
_KEYS = {ENCODING_IMAGES: "encoding pictures"}
"""Names of phases for programs, where people read another one."""


@dataclass(frozen=True)
class MemoryItem:
    """Something that takes memory; in bytes, on the device and in RAM."""

    name: str
    device: int
    host: int = 0


@dataclass(frozen=True)
class Phase:
    """A part of the run, and what is held at its worst moment."""

    name: str
    items: Sequence[MemoryItem]

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return sum(item.device for item in self.items)

    @property
    def host(self) -> int:
        """Bytes in RAM: set aside for the device, pinned if possible, or of what the processor runs."""
        return sum(item.host for item in self.items)


@dataclass(frozen=True)
class Account:
    """The phases of a run, in order."""

    phases: Sequence[Phase]

    @property
    def worst(self) -> Phase:
        """The phase that needs most of the device."""
        return max(self.phases, key=lambda phase: phase.device)

    def summary(self) -> str:
        """Return one line: what each phase takes."""
        phases = ", ".join(f"{phase.name} {phase.device / 1e9:.1f} GB" for phase in self.phases)
        host = max(phase.host for phase in self.phases)
        return f"memory of the device: {phases}" + (f"; of the host: {host / 1e9:.1f} GB" if host else "")

    def shortage(self, free: int | None) -> str | None:
        """Return a line if so many free bytes are too few, with what takes most; None if they suffice."""
        worst = self.worst
        if free is None or worst.device <= free:
            return None
        most = max(worst.items, key=lambda item: item.device)
        return (
            f"{worst.name} takes {worst.device / 1e9:.1f} GB on the device, {most.device / 1e9:.1f} GB of it "
            f"for {most.name}, and {free / 1e9:.1f} GB are free: it will run out of memory; "
            "docs/memory.md says which options take less"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all figures, in bytes, under names that stay the same for programs."""
        return {
            _KEYS.get(phase.name, phase.name): {
                "device": phase.device,
                "host": phase.host,
                "items": {item.name: {"device": item.device, "host": item.host} for item in phase.items},
            }
            for phase in self.phases
        }

    def as_text(self) -> str:
        """Return a table for people, in GB of 10^9 bytes."""
        lines = []
        for phase in self.phases:
            lines += ["", _row(phase.name, "device", "RAM")]
            lines += [_row(f"  {item.name}", _gb(item.device), _gb(item.host)) for item in phase.items]
            lines.append(_row("  together", _gb(phase.device), _gb(phase.host)))
        return "\n".join(lines[1:])


def _row(name: str, device: str, host: str) -> str:
    return f"{name:<52}{device:>12}{host:>14}"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3f} GB" if num_bytes else "-"
