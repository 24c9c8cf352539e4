"""Calls code of plugins so that whatever it raises, prints or changes in the process harms nobody else."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
UNKNOWN: Any = object()
"""The value of a state that cannot be told, such as torch's where torch is not imported."""


@dataclass(frozen=True)
class State:
    """One piece of global state.

    Attributes:
        read: its value, to be compared with ``==``; `UNKNOWN` where it has none.
        write: sets it to a value that `read` gave.
        fresh: its value when its library has just been imported; `UNKNOWN` where that differs by process (torch seeds
            itself anew in each).
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    fresh: Callable[[], Any] = lambda: UNKNOWN


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of a call.

    Attributes:
        value: what it returned; None where it raised.
        error: what it raised, of any type.
        changed: the names of the states that it changed and that were set back.
    """

    value: T | None
    error: BaseException | None
    changed: tuple[str, ...]


def contained(call: Callable[[], T], states: Sequence[State] = ()) -> Outcome[T]:
    """Call; catch everything, send what is printed to stderr, and set back what it changed of ``states``.

    Raises:
        KeyboardInterrupt: where the user pressed Ctrl-C meanwhile, even if the call swallowed it; in general, what the
            process's own signal handlers raise. A KeyboardInterrupt that no signal caused is the call's error.
    """
    with _signals_heard() as raised, _stdout_on_stderr():
        before = [state.read() for state in states]
        value, error = None, None
        try:
            value = call()
        except BaseException as caught:
            error = caught
        changed = tuple(state.name for state, old in zip(states, before, strict=True) if _set_back(state, old))
    if raised:
        raise raised[0]
    return Outcome(value, error, changed)


def _set_back(state: State, old: Any) -> bool:
    new = state.read()
    if old is UNKNOWN and new is not UNKNOWN:
        old = state.fresh()
    if UNKNOWN in (old, new) or new == old:
        return False
    state.write(old)
    return True


@contextmanager
def _signals_heard() -> Iterator[list[BaseException]]:
    """What handlers of SIGINT and SIGTERM raise inside, so that code in between cannot swallow it."""
    raised: list[BaseException] = []
    previous: dict[int, Any] = {}

    def handler(number: int, frame: Any) -> None:
        try:
            previous[number](number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    if threading.current_thread() is threading.main_thread():  # Python runs handlers nowhere else
        previous = {n: own for n in (signal.SIGINT, signal.SIGTERM) if callable(own := signal.getsignal(n))}
    for number in previous:
        signal.signal(number, handler)
    try:
        yield raised
    finally:
        for number, own in previous.items():
            if signal.getsignal(number) is handler:  # the handler itself may have put another in its place
                signal.signal(number, own)


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Python's stdout and the file descriptor below it, which subprocesses and C code write to."""
    with redirect_stdout(sys.stderr):
        try:
            if sys.__stdout__:
                sys.__stdout__.flush()
            kept = os.dup(1)
        except (OSError, ValueError):  # there is no stdout
            yield
            return
        try:
            with suppress(OSError):
                os.dup2(2, 1)
            yield
            if sys.__stdout__:
                sys.__stdout__.flush()
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _in_torch(name: str, read: str, write: str | Callable[[Any], None], fresh: Callable[[Any], Any]) -> State:
    """State that torch keeps behind a function to read it and one to write it; torch may not be imported."""
    return State(
        f"torch's {name}",
        lambda: getattr(sys.modules["torch"], read)() if "torch" in sys.modules else UNKNOWN,
        lambda value: write(value) if callable(write) else getattr(sys.modules["torch"], write)(value),
        lambda: fresh(sys.modules["torch"]),
    )


def _set_device(device: Any) -> None:
    sys.modules["torch"].set_default_device(None if device.type == "cpu" else device)


def _torch_random() -> Any:
    return torch.get_rng_state().numpy().tobytes() if (torch := sys.modules.get("torch")) else UNKNOWN


def _set_torch_random(state: bytes) -> None:
    torch = sys.modules["torch"]
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _numpy_random() -> Any:
    if "numpy.random" not in sys.modules:
        return UNKNOWN
    state = sys.modules["numpy.random"].get_state(legacy=False)
    inner = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in state["state"].items()}
    return {**state, "state": inner}


def _set_numpy_random(state: dict[str, Any]) -> None:
    sys.modules["numpy.random"].set_state(state)


def _signal_handlers() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return UNKNOWN
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _set_signal_handlers(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _cwd() -> Any:
    try:
        return Path.cwd()
    except OSError:
        return UNKNOWN


def _set_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()  # lets the module forget which warnings it has shown
    warnings.filters[:] = filters  # type: ignore[index]


def _set_environment(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _set_logging(state: tuple[int, list[logging.Handler]]) -> None:
    logging.root.level, logging.root.handlers[:] = state


NUMBERS = (
    _in_torch("default device", "get_default_device", _set_device, lambda torch: torch.device("cpu")),
    _in_torch("default dtype", "get_default_dtype", "set_default_dtype", lambda torch: torch.float32),
    _in_torch("grad mode", "is_grad_enabled", "set_grad_enabled", lambda torch: True),
    _in_torch(
        "deterministic mode",
        "are_deterministic_algorithms_enabled",
        "use_deterministic_algorithms",
        lambda torch: False,
    ),
    _in_torch(
        "matmul precision", "get_float32_matmul_precision", "set_float32_matmul_precision", lambda torch: "highest"
    ),
    _in_torch("number of threads", "get_num_threads", "set_num_threads", lambda torch: UNKNOWN),
    State("torch's random state", _torch_random, _set_torch_random),
    State("NumPy's random state", _numpy_random, _set_numpy_random),
)
"""What results depend on."""

PROCESS = (
    State("the working directory", _cwd, os.chdir),
    State("signal handlers", _signal_handlers, _set_signal_handlers),
)
"""What no import has a reason to change."""

IMPORTS = (
    State("Python's random state", random.getstate, random.setstate),
    State("sys.path", lambda: list(sys.path), lambda v: sys.path.__setitem__(slice(None), v)),
    State("warning filters", lambda: list(warnings.filters), _set_filters),
    State("environment variables", lambda: dict(os.environ), _set_environment),
    State("logging's root handlers", lambda: (logging.root.level, list(logging.root.handlers)), _set_logging),
    State("sys.excepthook", lambda: sys.excepthook, lambda v: setattr(sys, "excepthook", v)),
)
"""What well-behaved libraries change too when they are first imported (scikit-learn draws, NumPy adds filters)."""
