"""Seeds as pure functions of what is drawn, so that order, workers and processes cannot change a run."""

import hashlib


def derive(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on their order.

    Args:
        parts: what the draw belongs to, e.g. `("noise", seed, k)`; ints and strings never collide. A string
            may be the name of a file that is no valid text.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") >> 1
