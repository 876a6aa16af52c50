"""Every error that Tern raises on purpose, and how each one looks to a client.

    TernError
    ├── RequestError                 the caller's mistake: 4xx, retrying the same request is pointless
    │   ├── InvalidRequest           400  a value breaks a rule; `param` names the field
    │   │   ├── ContextLengthExceeded  400  prompt and answer cannot fit the model's context
    │   │   └── Unsupported          400  a field that would change the answer and is not honoured
    │   ├── NoTokenAllowed           400  the request's own rules leave no token to go on with
    │   ├── Unauthorized             401  no key, or a wrong one
    │   ├── ModelNotFound            404  a model name that is not served
    │   ├── KeyReused                409  an Idempotency-Key that belongs to another request
    │   └── BodyTooLarge             413  the HTTP body is over the limit
    ├── ServiceError                 not the caller's fault: 4xx/5xx by kind
    │   ├── Overloaded               429  queues are full; retry after a while
    │   ├── Unavailable              503  starting, draining, or without an engine core; retry
    │   │   └── NotAttached          503  an engine core that does not know this client; it attaches again
    │   ├── DeadlineExceeded         504  the request's own deadline passed
    │   ├── NumericalError           500  the model's numbers for this request were not finite
    │   ├── RequestCrashedWorker     500  a worker died of this request, twice
    │   ├── GrammarFailed            500  the answer cannot follow its grammar any further
    │   └── InternalError            500  a defect of ours, confined to this request
    ├── ProtocolMismatch             the two ends speak different versions; seen by whoever attaches
    └── StartupError                 the server cannot start: shown as one root-cause line, exit code 78
        └── OutOfMemory              the model or one KV block does not fit: exit code 75

`code` is stable and crosses the wire in `Refused`; `BY_CODE` turns it back into a class.
Handlers raise; the edge translates, from `status`, `code` and `param`.
"""

from typing import ClassVar


class TernError(Exception):
    """Root of the tree. `message` is safe to show to a client: no paths, addresses or prompts."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        """`retry_after_s`: when it is worth trying again, if that is known."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class RequestError(TernError):
    """The caller's mistake."""

    code = "invalid_request"
    status = 400


class InvalidRequest(RequestError):
    """A value breaks a rule. Seen by the client; do not retry."""

    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer cannot fit. Agents compact their history when they see this code."""

    code = "context_length_exceeded"


class Unsupported(InvalidRequest):
    """A field that would change the answer and is not honoured. Never silently ignored."""

    code = "unsupported_parameter"


class NoTokenAllowed(RequestError):
    """`allowed_token_ids` and `bad_words` leave nothing to go on with. Seen by the client, perhaps in
    mid-stream; do not retry."""

    code = "no_token_allowed"


class Unauthorized(RequestError):
    """No key or a wrong one."""

    code = "invalid_api_key"
    status = 401


class ModelNotFound(RequestError):
    """The model name is not served here."""

    code = "model_not_found"
    status = 404


class KeyReused(RequestError):
    """The Idempotency-Key belongs to another request. Seen by the client; use a new key."""

    code = "idempotency_key_reused"
    status = 409


class BodyTooLarge(RequestError):
    """The HTTP body is over the configured limit."""

    code = "body_too_large"
    status = 413


class ServiceError(TernError):
    """The server's state, not the request, is the reason."""

    code = "service_error"


class Overloaded(ServiceError):
    """Queues are full. Retry later."""

    code = "overloaded"
    status = 429
    retryable = True


class Unavailable(ServiceError):
    """Starting, draining, or without an engine core. Retry later."""

    code = "unavailable"
    status = 503
    retryable = True


class NotAttached(Unavailable):
    """The engine core does not know the client that submits. Never seen by a user: clients attach again."""

    code = "not_attached"


class DeadlineExceeded(ServiceError):
    """The request's own deadline passed before it was done."""

    code = "deadline_exceeded"
    status = 504


class NumericalError(ServiceError):
    """The model produced NaN or infinity for this request. Its neighbours are unaffected."""

    code = "numerical_error"


class RequestCrashedWorker(ServiceError):
    """A worker died of this request, and again when it ran alone. Its neighbours went on."""

    code = "request_crashed_worker"


class GrammarFailed(ServiceError):
    """The answer cannot follow its grammar any further, at bearable cost or at all. Its neighbours go on."""

    code = "grammar_failed"


class InternalError(ServiceError):
    """A defect confined to one request."""

    code = "internal_error"


class ProtocolMismatch(TernError):
    """The two ends were built from different protocol versions or schemas."""

    code = "protocol_mismatch"


DEVICE_EXIT_CODE = 70
"""Of a worker: its device is in an unusable state, as every later call would tell."""
PROTOCOL_EXIT_CODE = 71
"""Of a worker: a plan was lost or cannot be read."""


class StartupError(TernError):
    """The server cannot start. `hint` says what to change; starting again will not help."""

    code = "startup_error"
    exit_code: ClassVar[int] = 78

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class OutOfMemory(StartupError):
    """The model, or even one KV block, does not fit into memory."""

    code = "out_of_memory"
    exit_code = 75


def _tree(root: type[TernError]) -> dict[str, type[TernError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


BY_CODE: dict[str, type[TernError]] = (
    _tree(ServiceError) | _tree(RequestError) | {ProtocolMismatch.code: ProtocolMismatch}
)
"""Class of a wire code. A code that is not listed (a newer peer) is an `InternalError`."""
