"""One trainer each: what its settings are called, and what they are here. Each has a `PROGRAM`."""
