"""AutoRound checkpoints (Cheng et al., 2023), as Intel publishes them: stored as GPTQ or AWQ store theirs.

With symmetric weights, GPTQ's zero points are all in the middle, however a writer shifts them.
"""

from typing import Any

from msgspec import Struct

from protocol.errors import StartupError

from .awq import AWQConfig
from .gptq import GPTQConfig

_AS_GPTQ = ("auto_round:auto_gptq", "auto_round:gptqmodel", "auto_round:exllamav2")
_AS_AWQ = ("auto_round:auto_awq",)


class AutoRoundConfig(Struct, frozen=True, kw_only=True):
    """`quantization_config`; further keys tell how it was made."""

    bits: int
    group_size: int = 128
    sym: bool = True
    data_type: str = "int"
    packing_format: str = ""
    extra_config: dict[str, dict[str, Any]] | None = None
    """Of single modules."""

    @property
    def stored_as(self) -> GPTQConfig | AWQConfig:
        if self.packing_format in _AS_AWQ:
            return AWQConfig(bits=self.bits, group_size=self.group_size)
        return GPTQConfig(bits=self.bits, group_size=self.group_size)

    def check(self) -> None:
        """Raises StartupError for what is not supported."""
        if self.data_type != "int":
            raise StartupError(
                f"AutoRound with data_type {self.data_type!r} is not supported; it must be 'int'"
            )
        if self.packing_format not in (*_AS_GPTQ, *_AS_AWQ):
            raise StartupError(
                f"AutoRound with packing_format {self.packing_format!r} is not supported; it must be one of "
                f"{', '.join((*_AS_GPTQ, *_AS_AWQ))}"
            )
        if self.packing_format in _AS_GPTQ and not self.sym:
            raise StartupError("AutoRound with sym = False is supported in the packing of AWQ only")
        for module, settings in (self.extra_config or {}).items():
            for name, usual in (("bits", self.bits), ("group_size", self.group_size), ("sym", self.sym)):
                given = settings.get(name, usual)
                if given != usual and settings.get("bits", self.bits) < 16:
                    raise StartupError(
                        f"AutoRound's extra_config gives {module!r} {name} = {given!r}; all quantized "
                        f"modules must have {usual!r}"
                    )
        self.stored_as.check()
