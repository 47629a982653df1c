"""From gradients to changed weights: optimizers, schedules, clipping, the fused backward pass.

May import `core/`.
"""
