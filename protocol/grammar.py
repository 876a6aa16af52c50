"""How a grammar's text is read and followed: the same at the door, which judges it, and in the engine core.

A text is what llguidance's `LLMatcher` takes: a Lark grammar, or JSON such as {"grammars":
[{"json_schema": {…}}]}. Limits bound the work of reading a text and of each token, and the memory that a
follower may take. Imported by nobody who does not use it: it loads the library (40 ms, 10 MB).
"""

from collections.abc import Sequence
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # of reading a text: about 20 ms
    step_lexer_fuel=200_000,  # of one token: about 15 ms …
    step_max_items=50_000,  # … and 3 ms
    max_items_in_row=2_000,
    max_lexer_states=20_000,  # 20-40 MB
    max_grammar_size=200_000,
    verbose_errors=False,
)
WORDS = (r"[a-zA-Z ]{1,15}", r"[a-zA-Z ]{1,6}")
"""Tokens that are looked at together where a grammar allows any text of letters, besides the classes that the
library knows: 18 → 6 µs a mask of the bundled model's vocabulary. The short ones are for where little room is
left."""
SILENT = 0
DEAD_END = "there is no text that could follow"
_WORD_BYTES = 4


class GrammarError(ValueError):
    """A text cannot be read, or an answer cannot go on; the message is for whoever wrote the text."""


class GrammarReader:
    """One model's vocabulary."""

    def __init__(self, folder: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """`vocab_size` is the model's. Raises GrammarError when there is no use in asking again."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise GrammarError("the model has no tokenizer.json")
        if not eos_token_ids:
            raise GrammarError("the model has no end-of-sequence token")
        try:
            self._tokenizer = LLTokenizer(
                path.read_text(encoding="utf-8"),
                n_vocab=vocab_size,
                eos_token=list(eos_token_ids),
                slices=[*LLTokenizer.general_slices(), *WORDS],
            )
        except (ValueError, OSError) as error:
            raise GrammarError(f"tokenizer.json does not fit the model: {error}") from None
        self._mask_bytes = -(-vocab_size // (8 * _WORD_BYTES)) * _WORD_BYTES
        self._eos_token_ids = tuple(eos_token_ids)

    def read(self, text: str) -> "Follower":
        """At the beginning of an answer. Raises GrammarError."""
        follower = Follower(
            LLMatcher(self._tokenizer, text, log_level=SILENT, limits=LIMITS),
            self._mask_bytes,
            self._eos_token_ids,
        )
        follower.check()
        return follower


class Follower:
    """One answer on its way through a grammar. After a GrammarError it is of no more use."""

    def __init__(self, matcher: LLMatcher, mask_bytes: int, eos_token_ids: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._mask_bytes = mask_bytes
        self._eos_token_ids = eos_token_ids
        self.ended = False
        """`take_forced` has given the end of sequence."""

    def copy(self) -> "Follower":
        """Another answer that has got as far."""
        return Follower(self._matcher.deep_copy(), self._mask_bytes, self._eos_token_ids)

    def take(self, token_ids: list[int]) -> None:
        """The answer's next tokens. Raises GrammarError."""
        if not token_ids:
            return
        if not self._matcher.consume_tokens(token_ids):
            self.check()
            raise GrammarError("the answer does not follow the grammar")

    def take_forced(self) -> list[int]:
        """What comes next without a choice, end of sequence included, which is the last then."""
        token_ids: list[int] = self._matcher.compute_ff_tokens()
        if token_ids:
            self.take(token_ids)
        if self._matcher.is_stopped():
            self.check()
            self.ended = True
            token_ids = [*token_ids, self._eos_token_ids[0]]
        return token_ids

    def is_end(self, token_id: int) -> bool:
        """An end-of-sequence token, which ends an answer where the grammar lets it."""
        return token_id in self._eos_token_ids

    def mask(self) -> bytes:
        """The tokens that may come next, as in StepPlan.masks; never none. Raises GrammarError."""
        mask = self._matcher.compute_bitmask()[: self._mask_bytes]
        self.check()
        if not any(mask):
            raise GrammarError(DEAD_END)
        return mask

    def check(self) -> None:
        """Raises GrammarError if there has been one."""
        if self._matcher.is_error():
            message = self._matcher.get_error().removesuffix("<non-verbose/>").strip()
            raise GrammarError(DEAD_END if message.startswith("NoExtension") else message)
