"""Request: what the engine core knows of one request. Knows nothing of text, sockets or steps.

    token_ids   [ prompt ............ | outputs known ..... ]  outputs in flight
                 0          num_prompt_tokens      num_tokens
                 [ num_computed_tokens: KV planned so far ──────────────▶ ]

A request that has computed all it knows is *decoding*: each step computes the token that the step
before sampled, known or still in flight. How far it is then follows from the number of the step
(`Scheduler.num_computed_tokens`); the field here counts up to `decoding_since`.
"""

from array import array
from enum import Enum, auto
from typing import TYPE_CHECKING

from protocol import columns
from protocol.messages import EngineFacts, Finish, Submit

from .clients import Client
from .grammar import Grammar
from .transcript import Transcript

if TYPE_CHECKING:
    from .decode_batch import Unread


class State(Enum):
    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


class Request:
    """Mutable; owned by the scheduler, except for `token_ids`, to which results are appended."""

    __slots__ = (
        "adapter",
        "alone_until",
        "arrival",
        "begun_at",
        "block_keys",
        "block_tables",
        "cache_root",
        "cache_salt",
        "client",
        "crashes",
        "crashes_alone",
        "deadline",
        "decoding_since",
        "digest",
        "due_step",
        "embed",
        "embedding_bytes",
        "finish",
        "first_blocks",
        "grammar",
        "key",
        "known_token_ids",
        "last_step",
        "max_total_tokens",
        "num_awaited_tokens",
        "num_blocks",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_findable_blocks",
        "num_prompt_tokens",
        "num_sent_tokens",
        "priority",
        "request_id",
        "sampling",
        "slot",
        "state",
        "stop_token_ids",
        "suspect",
        "tenant",
        "transcript",
        "unread",
        "waiting_since",
        "wants_every_token",
    )

    def __init__(self, client: Client, submit: Submit, facts: EngineFacts, arrival: int) -> None:
        sampling = submit.sampling
        self.client = client
        self.request_id = submit.request_id
        self.sampling = sampling
        self.priority = submit.priority
        self.tenant = submit.tenant
        self.cache_salt = submit.cache_salt
        self.adapter = submit.adapter
        self.embed = submit.embed
        """A vector is wanted, no answer: it ends with the result of its last chunk."""
        means = submit.embed and facts.pooling == "mean"
        self.wants_every_token = means or sampling.prompt_logprobs is not None
        """Something is made of each prompt token: none may be skipped because its KV is there."""
        self.embedding_bytes = 4 * facts.embedding_size if submit.embed else 0
        self.arrival = arrival
        self.deadline: float | None = None
        self.waiting_since = 0.0
        """When it came."""
        self.begun_at: float | None = None
        """When the first step began on it."""
        self.known_token_ids: array[int] = columns.unpack_ids(submit.prompt_token_ids)
        self.unread: Unread | None = None
        """Where results may wait that belong to `token_ids`; set once it decodes."""
        self.num_prompt_tokens = len(self.known_token_ids)
        self.known_token_ids.extend(columns.unpack_ids(submit.resumed_token_ids))
        self.num_awaited_tokens = len(self.known_token_ids) - self.num_prompt_tokens + 1
        """Output tokens with which its prefill is over; 0 once it is."""
        self.max_total_tokens = min(self.num_prompt_tokens + sampling.max_tokens, facts.max_model_len)
        eos = () if sampling.ignore_eos else facts.eos_token_ids
        self.stop_token_ids = frozenset((*sampling.stop_token_ids, *eos))

        self.state = State.WAITING
        self.slot = -1
        self.block_tables: tuple[list[int], ...] = ()
        """Of each KV group; see kv_blocks.py."""
        self.num_blocks = 0
        """Of each of its tables."""
        self.first_blocks: list[int] = []
        """Of each table: its entries before that are NO_BLOCK."""
        self.cache_root = b""
        """Parent of the first block's key; b"" until it is needed."""
        self.block_keys: list[bytes] = []
        """Prefix-cache keys of the full blocks of `token_ids`, as far as they were needed."""
        self.num_findable_blocks = 0
        """Blocks at the head of the tables that the prefix cache has been told of."""
        self.num_computed_tokens = 0
        self.num_cached_tokens = -1
        """Prompt tokens found in the prefix cache when it first ran; -1 before."""
        self.decoding_since = 0
        """Of a decoding request: the step up to which `num_computed_tokens` counts."""
        self.due_step = -1
        """Of a decoding request: the step that needs a decision first: a new block, or that it is the end."""
        self.last_step = -1
        """Of a decoding request: the step whose token is the last that fits."""
        self.crashes = 0
        """Evidence against it, see Suspects."""
        self.crashes_alone = 0
        self.suspect = False
        self.alone_until = 0
        """Of a suspect: the number of tokens at which it has proved harmless."""
        self.finish = Finish.NONE
        self.key = submit.key
        self.digest = submit.digest
        self.grammar = Grammar(submit.grammar) if submit.grammar else None
        self.num_sent_tokens = 0
        """Tokens that its worker knows when all planned steps are done. With a grammar, one more than
        `num_tokens` while the newest is in flight, and fewer after some were forced."""
        self.transcript: Transcript | None = None
        """What besides the ids is sent again to a client that needs it."""

    def forget_cache(self) -> None:
        """Another prefix cache, with another secret, has taken the place of the one that it knew."""
        self.block_keys.clear()
        self.cache_root = b""
        if not self.num_output_tokens:
            self.num_cached_tokens = -1  # whatever was found is lost, and computed after all

    @property
    def token_ids(self) -> "array[int]":
        """All that is known."""
        if self.unread is not None:
            self.unread.bring_home()
        return self.known_token_ids

    @property
    def is_decoding(self) -> bool:
        return self.due_step >= 0

    @property
    def num_tokens(self) -> int:
        """Prompt and known outputs."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def asks_grammar(self) -> bool:
        """Its grammar has yet to say what follows the tokens that are known."""
        return self.grammar is not None and self.grammar.mask_at != len(self.token_ids)

    @property
    def may_go_on(self) -> bool:
        """Its grammar, if it has one, says what its worker may sample next, or will have said it by then."""
        if self.grammar is None:
            return True
        num_tokens, sent = len(self.token_ids), self.num_sent_tokens
        if sent < num_tokens or sent == num_tokens == self.grammar.mask_at:
            return True
        return not self.grammar.slow_tokens and sent < self.max_total_tokens

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first; who comes last is preempted first."""
        return self.priority, self.arrival
