"""A phantom graphics card: a command runs as if there were one, and its waits for the card are counted.

    python tests/phantom/card.py sd-scripts/train_network.py --pretrained_model_name_or_path ...
    python tests/phantom/card.py -m sfumato generate sd ...
    python -m pytest -p tests.phantom.card tests/training

`card.cpp` makes tensors on `cuda:0` whose memory is the host's and whose kernels are the processor's; this
file builds it, and stands in for the part of `torch.cuda` that is written in Python: streams, events ...
Tensors of the host and of the card do not mix, generators belong to a device, copies are made as late as they
may be. What it cannot show: real kernels and which dtypes they take, compilation, speed, too little memory,
several cards. A process that has it keeps it to its end.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import torch
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("card.cpp")
NAME = "phantom_card"
ROOT = Path(__file__).parents[2]
MEMORY_BYTES = 24 << 30
IS_POSSIBLE = shutil.which("g++") is not None and not torch.backends.cuda.is_built()
"""Whether a card can be put in here: it takes a compiler, and a PyTorch that does not bring its own."""

waits: Counter[tuple[str, str]] = Counter()
"""How often the host waited for the card: for what, and at which place of the project."""

card: Any = None


def pytest_configure() -> None:
    """Run tests on the card: `pytest -p tests.phantom.card` gives it to a whole test run."""
    insert()


def insert() -> None:
    """Put the card in, before anybody has asked PyTorch for devices."""
    global card
    if card is not None:
        return
    spec = importlib.util.spec_from_file_location(NAME, build())
    assert spec is not None
    assert spec.loader is not None
    card = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(card)
    if importlib.util.find_spec("bitsandbytes"):
        import bitsandbytes  # noqa: F401  (while there is no card: it looks for kernels, and finds the processor's)
    for name, value in _stand_ins().items():
        for module in (torch.cuda, torch.cuda.memory, torch.cuda.random, torch.cuda.streams):
            if module is torch.cuda or hasattr(module, name):
                setattr(module, name, value)
    for name, value in _answers().items():
        setattr(torch._C, name, value)
    # Its compiled form takes none of our streams.
    torch.Tensor.record_stream = lambda tensor, stream: card.keep_source(tensor)  # type: ignore[method-assign]
    card.listen(lambda what: waits.update([(what, _place())]))


def build() -> Path:
    """Compile the card, once for each PyTorch, Python and source; return the library."""
    key = f"{torch.__version__} {sys.version} {SOURCE.read_text('utf-8')}".encode()
    folder = Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}"
    library = folder / f"{hashlib.sha256(key).hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        subprocess.run([*_compiler(), str(SOURCE), "-o", str(unfinished), *_libraries()], check=True)
        unfinished.replace(library)
    return library


def _compiler() -> list[str]:
    folders = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    settings = {
        "TORCH_EXTENSION_NAME": NAME,
        "_GLIBCXX_USE_CXX11_ABI": int(torch._C._GLIBCXX_USE_CXX11_ABI),
    }
    defined = [f"-D{name}={value}" for name, value in settings.items()]
    standard = "-std=c++20" if torch.__version__ >= "2.10" else "-std=c++17"
    flags = ["-O0", "-w", "-shared", "-fPIC", standard]
    return ["g++", *flags, *defined, *(f"-I{folder}" for folder in folders)]


def _libraries() -> list[str]:
    folder = Path(torch.__file__).parent / "lib"
    names = ("torch", "torch_cpu", "torch_python", "c10")
    return [f"-L{folder}", *(f"-l{name}" for name in names), f"-Wl,-rpath,{folder}"]


def _place() -> str:
    """Return where in the project the host is, without its tests: the innermost line."""
    frames = _frames(sys._getframe(2))
    own = (frame for frame in frames if Path(frame.f_code.co_filename).is_relative_to(ROOT / "sfumato"))
    found = next(own, None)
    if found is None:
        return "elsewhere"
    return f"{Path(found.f_code.co_filename).relative_to(ROOT).as_posix()}:{found.f_lineno}"


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


class Stream:
    """A queue of the card's; number 0 is the one that computes."""

    _num = 0

    def __init__(self, device: Any = None, priority: int = 0, number: int | None = None) -> None:
        if number is None:
            Stream._num += 1
            number = Stream._num
        self.number = self.stream_id = self.cuda_stream = number
        self.device = torch.device("cuda", 0)
        self.device_index, self.device_type = 0, 1

    def wait_event(self, event: Event) -> None:
        event.make_copies()

    def wait_stream(self, other: Stream) -> None:
        card.make_copies(other.number, -1)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        waits.update([("a stream", _place())])
        card.make_copies(self.number, -1)

    def query(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.number == self.number

    def __hash__(self) -> int:
        return hash(self.number)


class Event:
    """A point in a queue."""

    def __init__(self, **_: bool) -> None:
        self._mark: tuple[int, int] | None = None

    def record(self, stream: Stream | None = None) -> None:
        self._mark = (stream or _current_stream()).number, card.num_copies()

    def wait(self, stream: Stream | None = None) -> None:
        self.make_copies()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        waits.update([("an event", _place())])
        self.make_copies()

    def elapsed_time(self, other: Event) -> float:
        return 1.0

    def make_copies(self) -> None:
        if self._mark is not None:
            card.make_copies(*self._mark)


class _Using:
    """Work for another stream in a `with` block."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        if self._stream is not None:
            self._before = card.set_stream(self._stream.number)

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            card.set_stream(self._before)


class _Device:
    """The only device, for a `with` block."""

    def __init__(self, device: Any = None) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _current_stream(device: Any = None) -> Stream:
    return Stream(number=card.current_stream())


def _synchronize(device: Any = None) -> None:
    waits.update([("the card", _place())])
    card.make_copies(-1, -1)


def _properties(device: Any = None) -> SimpleNamespace:
    sizes = {"total_memory": MEMORY_BYTES, "multi_processor_count": 82, "L2_cache_size": 6 << 20}
    return SimpleNamespace(name="Phantom", major=8, minor=6, warp_size=32, gcnArchName="", **sizes)


def _pin(place: int, size: int, flags: int) -> int:
    card.pin(place, size)
    return 0


def _unpin(place: int) -> int:
    card.unpin(place)
    return 0


def _free(device: Any = None) -> tuple[int, int]:
    return MEMORY_BYTES - card.live(), MEMORY_BYTES


def _stand_ins() -> dict[str, Any]:
    """Return what takes the place of functions and classes of `torch.cuda`, by name."""
    generator = card.default_generator()

    def seed_all(seed: int) -> None:
        generator.manual_seed(seed)

    runtime = SimpleNamespace(cudaHostRegister=_pin, cudaHostUnregister=_unpin, cudaMemGetInfo=_free)
    return {
        **dict.fromkeys(("is_available", "is_initialized", "_is_compiled"), lambda: True),
        **dict.fromkeys(("_is_in_bad_fork", "is_current_stream_capturing"), lambda: False),
        **dict.fromkeys(("init", "_lazy_init", "empty_cache", "ipc_collect"), lambda: None),
        **dict.fromkeys(("memory_allocated", "memory_reserved"), lambda device=None: card.live()),
        **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), lambda device=None: card.peak()),
        **dict.fromkeys(("manual_seed", "manual_seed_all"), seed_all),
        "reset_peak_memory_stats": lambda device=None: card.reset_peak(),
        "memory_stats": lambda device=None: {},
        "mem_get_info": _free,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": _Device,
        "get_device_name": lambda device=None: "Phantom",
        "get_device_capability": lambda device=None: (8, 6),
        "get_device_properties": _properties,
        "get_arch_list": lambda: ["sm_86"],
        "is_bf16_supported": lambda including_emulation=True: True,
        "cudart": lambda: runtime,
        "Stream": Stream,
        "Event": Event,
        "StreamContext": _Using,
        "stream": _Using,
        "current_stream": _current_stream,
        "default_stream": lambda device=None: Stream(number=0),
        "synchronize": _synchronize,
        "default_generators": (generator,),
        "initial_seed": generator.initial_seed,
        "get_rng_state": lambda device=None: generator.get_state(),
        "get_rng_state_all": lambda: [generator.get_state()],
        "set_rng_state": lambda state, device=None: generator.set_state(state) and None,
        "set_rng_state_all": lambda states: [generator.set_state(state) for state in states] and None,
    }


def _answers() -> dict[str, Any]:
    """Return what takes the place of PyTorch's compiled functions that are asked behind `torch.cuda`."""
    return {
        "_cuda_getDeviceCount": lambda: 1,
        "_cuda_getCurrentRawStream": lambda device: 0,
        "_cuda_isCurrentStreamCapturing": lambda: False,
        "_cuda_getDevice": lambda: 0,
        "_cuda_setDevice": lambda device: None,
        "_cuda_exchangeDevice": lambda device: 0,
        "_cuda_maybeExchangeDevice": lambda device: 0,
    }


def report(found: Counter[tuple[str, str]], most: int = 40) -> str:
    """Return where the host waited, most often first."""
    rows = [f"{count:6}  {what:24} {place}" for (what, place), count in found.most_common(most)]
    return "\n".join([*rows, f"{found.total():6}  waits; at most {card.peak() / 1e6:.1f} MB on the card"])


def main(command: Sequence[str]) -> None:
    """Run a script, or a module after `-m`, with the card; then say where the host waited."""
    if not command or not IS_POSSIBLE:
        sys.exit(__doc__ if not command else "this takes g++, and a PyTorch without CUDA")
    insert()
    sys.path.insert(0, os.getcwd())
    is_module = command[0] == "-m"
    sys.argv = list(command[is_module:])
    try:
        (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")
    finally:
        print(report(waits), file=sys.stderr)


if __name__ == "__main__":
    sys.modules["card"] = sys.modules["__main__"]
    main(sys.argv[1:])
