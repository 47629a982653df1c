"""What exists only because sd-scripts has it: `--network_module`, `--network_args`, third-party networks.

May import everything else in `adapters/`.
"""
