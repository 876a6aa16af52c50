"""Whether a checkpoint with an `auto_map` is served without the code that it names, which is never run.

Many checkpoints were published before transformers had their family, and still name the code that they
came with (Phi-3, DeepSeek, MiniMax). It is not needed where its class is the family's by name.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from protocol.errors import StartupError

_WRITES_TEXT = "AutoModelForCausalLM"


def check_own_code(auto_map: Mapping[str, Any], architectures: Sequence[str], model_type: str) -> None:
    """Raises StartupError where the code is needed; says on stderr that it is left out where it is not."""
    named = next((auto_map[key] for key in (_WRITES_TEXT, "AutoModel") if key in auto_map), None)
    if named is None:
        return
    class_name = str(named).rpartition(".")[2]
    family = model_type.replace("_", "").replace("-", "").lower()
    if class_name not in architectures or not class_name.lower().startswith(family) or not family:
        raise StartupError(
            f"config.json has an auto_map: {list(architectures)} of model_type {model_type!r} needs its own "
            f"code ({named}), which Tern never runs",
            hint="use a checkpoint in the format of transformers' own classes, if there is one",
        )
    message = f"{named} in the checkpoint is not run: {class_name} is computed without it"
    print(f"tern: {message}", file=sys.stderr, flush=True)
