"""All tool formats by name, and which of them a chat template speaks."""

from .deepseek_v3 import CALLS, FENCE, DeepSeekV3
from .deepseek_v32 import DSML, DeepSeekV32
from .glm45 import KEY, Glm45
from .harmony import CHANNEL, Harmony
from .hermes import Hermes
from .llama3_json import Llama3Json
from .mistral import ARGS, Mistral
from .pythonic import Pythonic
from .qwen3_coder import FUNCTION, Qwen3Coder
from .tool_format import ToolFormat

FORMATS: dict[str, ToolFormat] = {
    one.name: one
    for one in (
        Hermes(),
        Llama3Json(),
        Mistral(named=True),
        Pythonic(),
        Qwen3Coder(),
        Glm45(),
        DeepSeekV3(fenced=True),
        DeepSeekV32(),
        Harmony(),
    )
}
"""By the name of --tool-call-parser."""

FALLBACK: ToolFormat = Hermes()
"""In which calls are enforced where the model's own format cannot be."""


def format_named(name: str, template: str) -> ToolFormat:
    """`template` decides between kinds of the same format."""
    if name == DeepSeekV3.name:
        return DeepSeekV3(fenced=not template or FENCE in template)
    return Mistral(named=ARGS in template) if name == Mistral.name else FORMATS[name]


def format_of(template: str) -> ToolFormat | None:
    """By what a chat template's text shows of calls; None: nothing that is known."""
    if "[TOOL_CALLS]" in template:
        return format_named("mistral", template)
    if CHANNEL in template and "to=functions." in template:
        return FORMATS["openai"]
    if DSML in template:
        return FORMATS["deepseek_v32"]
    if CALLS in template:
        return format_named("deepseek_v3", template)
    if "<tool_call>" in template and KEY in template:
        return FORMATS["glm45"]
    if "<tool_call>" in template and FUNCTION in template:
        return FORMATS["qwen3_coder"]
    if "<tool_call>" in template:
        return FORMATS["hermes"]
    if "[func_name1(" in template:
        return FORMATS["pythonic"]
    if "<|python_tag|>" in template or ("ipython" in template and '"parameters": ' in template):
        return FORMATS["llama3_json"]
    return None
