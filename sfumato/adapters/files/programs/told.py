"""What all programs make of an adapter file, in words."""

from __future__ import annotations

from collections.abc import Mapping

from sfumato.adapters.files.programs import comfyui, diffusers, invokeai, sd_scripts
from sfumato.adapters.files.programs.verdict import Program, Shapes, Verdict

PROGRAMS: Mapping[str, Program] = {
    "ComfyUI": comfyui.judge,
    "diffusers": diffusers.judge,
    "sd-scripts": sd_scripts.judge,
    "InvokeAI": invokeai.judge,
}


def verdicts(shapes: Shapes) -> dict[str, Verdict]:
    """Return what each program makes of a file, of which anything is known."""
    found = {name: judge(shapes) for name, judge in PROGRAMS.items()}
    return {name: verdict for name, verdict in found.items() if verdict is not None}


def describe(shapes: Shapes) -> str:
    """Return how many of a file's tensors each program loads: `of 912 tensors load: ComfyUI 912, ...`."""
    found = verdicts(shapes)
    counts = [f"{name} {verdict}" for name, verdict in found.items()]
    remarks = [f"{name}: {remark}" for name, verdict in found.items() for remark in verdict.remarks]
    return "; ".join([f"of {len(shapes)} tensors load: {', '.join(counts)}", *remarks])
