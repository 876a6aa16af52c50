"""Service: what the endpoints of one frontend share. Made once at start; holds no request.

`GenerationDefaults` are the checkpoint's own (generation_config.json) for parameters that a request
omits, as in vLLM. A checkpoint that says `do_sample: false` is greedy unless the request says otherwise.
"""

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from protocol.adapters import adapter_names
from protocol.client import EngineClient
from protocol.config import FrontendConfig
from protocol.errors import ModelNotFound, StartupError
from protocol.frontend_options import FrontendOptions
from protocol.sampling import MAX_SEED

from .chat_template import ChatTemplate
from .door import Door
from .grammars import Grammars
from .live import Live
from .metrics import Metrics
from .reading import Formats
from .response_store import ResponseStore
from .tokenizer import Tokenizer


class GenerationDefaults(Struct, frozen=True, kw_only=True):
    """The part of generation_config.json that applies to sampling; None: not said there."""

    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None

    @classmethod
    def load(cls, folder: Path) -> "GenerationDefaults":
        """From a checkpoint's folder. Raises StartupError when a value makes no sense."""
        path = folder / "generation_config.json"
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except (msgspec.DecodeError, OSError, UnicodeDecodeError) as error:
            raise StartupError(f"{path} cannot be read: {error}") from error
        if found.do_sample is False and found.temperature is None:
            return msgspec.structs.replace(found, temperature=0.0)
        return found


class Service:
    """Tokenizer, template, grammars, engine client, door, live view, metrics and store of one frontend."""

    def __init__(
        self,
        *,
        client: EngineClient,
        tokenizer: Tokenizer,
        grammars: Grammars,
        template: ChatTemplate | None,
        defaults: GenerationDefaults,
        metrics: Metrics,
        options: FrontendOptions,
        model_names: tuple[str, ...],
        adapters: tuple[str, ...] = (),
        response_store: ResponseStore,
        seed: int = 0,
    ) -> None:
        self.client = client
        self.tokenizer = tokenizer
        self.grammars = grammars
        self.template = template
        self.formats = Formats.of(template, tokenizer, options)
        self.defaults = defaults
        self.metrics = metrics
        self.options = options
        self.model_names = model_names
        self.adapters = adapters
        """Names for which the model is asked with an adapter."""
        self.response_store = response_store
        self.door = Door(client)
        self.live = Live(client, self.door)
        self.started_at = int(time.time())
        self._seeds = random.Random(seed or None)

    @classmethod
    def load(
        cls, config: FrontendConfig, client: EngineClient, restarts: Callable[[], Mapping[str, int]]
    ) -> "Service":
        """Read all that a frontend needs of a checkpoint; `restarts` is for the metrics. Raises
        StartupError."""
        folder = Path(config.model.model)
        tokenizer_folder = Path(config.model.tokenizer or config.model.model)
        tokenizer = Tokenizer(tokenizer_folder)
        return cls(
            client=client,
            tokenizer=tokenizer,
            grammars=Grammars(str(tokenizer_folder)),
            template=ChatTemplate.load(
                config.frontend.chat_template, tokenizer_folder, tokenizer.config, tokenizer.special_tokens
            ),
            defaults=GenerationDefaults.load(folder),
            metrics=Metrics(config.metrics_dir, config.frontend.metrics_prefix, restarts),
            options=config.frontend,
            model_names=config.model.served_model_name,
            adapters=adapter_names(config.model.lora),
            response_store=ResponseStore(
                config.responses_dir,
                config.frontend.response_store_bytes,
                index=config.index,
                num_frontends=config.frontend.frontends,
            ),
            seed=config.model.seed and config.model.seed + config.index,
        )

    def model_name(self, asked: str | None) -> str:
        """The name to report for a request. Raises ModelNotFound."""
        if asked and asked not in self.model_names and asked not in self.adapters:
            served = ", ".join((*self.model_names, *self.adapters))
            raise ModelNotFound(f"the model {asked!r} is not served here; served: {served}", param="model")
        return asked or self.model_names[0]

    def adapter(self, asked: str | None) -> str:
        """With which the model named by a request answers it; empty: none."""
        return asked if asked and asked in self.adapters else ""

    def now(self) -> int:
        """Wall-clock time in whole seconds: some clients refuse a fraction."""
        return int(time.time())

    def draw_seed(self) -> int:
        """For a request that brings none."""
        return self._seeds.randint(0, MAX_SEED)
