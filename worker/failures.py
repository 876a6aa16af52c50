"""What an exception means for the process: go on, or exit, and with which code. Knows no plans.

    70  the device is in an unusable state, as every later call would tell
    71  the engine core broke the protocol: a plan is lost or cannot be read
    75  out of memory, again and again
    78  a mistake in the configuration or in a file (protocol/errors.py)
     1  anything else that ends a worker

Classes are told by name, because the stub's process has no torch.
"""

from protocol.control import Failed
from protocol.errors import DEVICE_EXIT_CODE, PROTOCOL_EXIT_CODE, OutOfMemory, StartupError

_CPU_ALLOCATOR = "DefaultCPUAllocator"
"""torch on the CPU raises a plain RuntimeError of its allocator."""


_DEVICE_SIGNS = "CUDA error", "Triton Error [CUDA]"
"""As torch writes it, and Triton, when the first call to find the device lost is a launch of its own."""


class ProtocolBroken(Exception):
    """The engine core's messages do not follow each other. Only a new start brings both to the same state."""


class RowsFailed(Exception):
    """A step failed for these slots only, as far as can be told."""

    def __init__(self, slots: tuple[int, ...], cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.slots = slots


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device or of the host: what was asked for can be asked for again, in smaller parts."""
    names = _names(error)
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or _CPU_ALLOCATOR in str(error)


def is_device_error(error: BaseException) -> bool:
    """An error that poisons the device's context."""
    names = _names(error)
    told = any(sign in str(error) for sign in _DEVICE_SIGNS)
    return "AcceleratorError" in names or ("RuntimeError" in names and told)


def last_words(error: Exception) -> Failed:
    """What the supervisor is told, with the code to exit with."""
    if isinstance(error, StartupError):
        return Failed.of(error)
    text = f"{type(error).__name__}: {error}"[:4096]
    if is_out_of_memory(error):
        return Failed(OutOfMemory.code, text, exit_code=OutOfMemory.exit_code)
    if is_device_error(error):
        return Failed("device_error", text, exit_code=DEVICE_EXIT_CODE)
    if isinstance(error, ProtocolBroken):
        return Failed("protocol_error", str(error), exit_code=PROTOCOL_EXIT_CODE)
    return Failed.of(error)


def _names(error: BaseException) -> set[str]:
    """Of its class and all bases, and of what it was raised from."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return names if error.__cause__ is None else names | _names(error.__cause__)
