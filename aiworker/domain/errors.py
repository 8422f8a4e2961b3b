"""Every way in which a job or a request can go wrong.

    WorkerError
    ├── InputRejected            the request or its media is at fault; trying again cannot help
    │   ├── UnknownJobType, MediaUrlInvalid, MediaAddressForbidden, MediaTooLarge,
    │   └── MediaTypeUnsupported, MediaNotFound, ImageUnreadable, ImageKillsChild, DetectorUnknown
    ├── MediaUnavailable         the other side hung or failed; may work later
    ├── ProviderError            an LLM call failed
    │   ├── ProviderUnavailable      may work later
    │   │   └── ProviderUnreachable, StreamBroken
    │   ├── ProviderTimeout, ProviderRateLimited      may work later, `retry_after` and `scope` where they are known
    │   ├── ProviderRefused          never for this content
    │   │   └── PromptBlocked, AnswerBlocked, LocalOnly
    │   ├── ProviderMisconfigured    not before somebody mends it
    │   │   └── KeyRejected, ModelNotFound, ModelCannotSee, RequestRejected
    │   ├── AnswerInvalid            another try may do better, but for AnswerLeaks
    │   │   └── AnswerTruncated, AnswerEmpty, AnswerLeaks
    │   └── NoProvider               nobody could be asked in time
    ├── InferenceUnavailable     no child can take the image now
    │   └── InferenceOutOfMemory     not even alone did it fit into memory
    ├── DeadlineExceeded         the attempt used up its time
    ├── QueueError
    │   ├── DatabaseUnavailable
    │   └── JobNotFound, JobAlreadyFinished, TooManyActiveJobs, IdempotencyConflict
    ├── NotAuthenticated, NotAllowed
    └── ConfigurationError
        └── WeightsUnavailable

`code` is stable and goes to clients; the sentence a person reads comes from `messages.sentence(code)`.
`note` and `details` are for operators: they hold sizes, hosts and provider statuses, never content, keys or names.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Detail = str | int | float | bool | None


class WorkerError(Exception):
    """Base of all errors of this package.

    Args:
        note: one English sentence for the log, without content, keys or names.
        retry_after: seconds after which the other side asked us to come back.
        details: small facts for the client (`limit_bytes=...`), safe to show.
    """

    code: ClassVar[str] = "internal_error"
    retryable: bool = False

    def __init__(self, note: str = "", *, retry_after: float | None = None, **details: Detail) -> None:
        super().__init__(f"{self.code}: {note}" if note else self.code)
        self.note = note
        self.retry_after = retry_after
        self.details = details


class InputRejected(WorkerError):
    code = "invalid_input"


class InputTooLarge(InputRejected):
    code = "body_too_large"


class UnknownJobType(InputRejected):
    code = "unknown_job_type"


class MediaUrlInvalid(InputRejected):
    code = "media_url_invalid"


class MediaAddressForbidden(InputRejected):
    code = "media_address_forbidden"


class MediaTooLarge(InputRejected):
    code = "media_too_large"


class MediaTypeUnsupported(InputRejected):
    code = "media_type_unsupported"


class MediaNotFound(InputRejected):
    code = "media_not_found"


class ImageUnreadable(InputRejected):
    code = "image_unreadable"


class ImageKillsChild(InputRejected):
    code = "image_kills_child"


class DetectorUnknown(InputRejected):
    code = "detector_unknown"


class MediaUnavailable(WorkerError):
    code = "media_unavailable"
    retryable = True


class ProviderError(WorkerError):
    """`provider` is "ollama" or "gemini". `cost_usd` is what has been paid until nobody was left to ask."""

    code = "provider_error"
    retryable = True

    def __init__(
        self,
        note: str = "",
        *,
        provider: str = "",
        retry_after: float | None = None,
        **details: Detail,
    ) -> None:
        super().__init__(note, retry_after=retry_after, **details)
        self.provider = provider
        self.cost_usd = 0.0


class ProviderUnavailable(ProviderError):
    code = "provider_unavailable"


class ProviderUnreachable(ProviderUnavailable):
    """It does not even take the connection."""

    code = "provider_unreachable"


class StreamBroken(ProviderUnavailable):
    """The answer began and then ended early, broke off with an error, or turned to garbage."""

    code = "provider_stream_broken"


class ProviderTimeout(ProviderError):
    """`details["phase"]` is slot, connect, first_token or total."""

    code = "provider_timeout"


QuotaScope = Literal["minute", "day"]


class ProviderRateLimited(ProviderError):
    """`scope` is how long the quota that is used up lasts, where the provider says so."""

    code = "provider_rate_limited"

    def __init__(
        self,
        note: str = "",
        *,
        provider: str = "",
        retry_after: float | None = None,
        scope: QuotaScope | None = None,
        **details: Detail,
    ) -> None:
        super().__init__(note, provider=provider, retry_after=retry_after, **details)
        self.scope = scope

    @property
    def per_day(self) -> bool:
        """True where the quota only comes back the next day."""
        return self.scope == "day"


class ProviderRefused(ProviderError):
    """The provider will not answer this content (safety, policy)."""

    code = "provider_refused"
    retryable = False


class PromptBlocked(ProviderRefused):
    code = "prompt_blocked"


class AnswerBlocked(ProviderRefused):
    code = "answer_blocked"


class LocalOnly(ProviderRefused):
    """This kind of analysis must not leave the server (LOCAL_ONLY), and the provider is elsewhere."""

    code = "local_only"


class ProviderMisconfigured(ProviderError):
    """Nothing helps before an operator mends something; `note` says what."""

    code = "provider_misconfigured"
    retryable = False


class KeyRejected(ProviderMisconfigured):
    code = "provider_key_rejected"


class ModelNotFound(ProviderMisconfigured):
    """Not pulled, or no such name. `details["only_model"]` is true where the provider is asked for no other one."""

    code = "provider_model_not_found"


class ModelCannotSee(ProviderMisconfigured):
    """A text-only model was to be given an image."""

    code = "provider_model_cannot_see"


class RequestRejected(ProviderMisconfigured):
    """The provider does not take this one request: a bad option, format, schema or picture. Others may still work."""

    code = "provider_request_rejected"


class PromptTooLong(RequestRejected):
    """More than the model's context holds."""

    code = "prompt_too_long"


class AnswerInvalid(ProviderError):
    """The model answered, but not with what was asked for, after the one repair try."""

    code = "answer_invalid"


class AnswerTruncated(AnswerInvalid):
    code = "answer_truncated"


class AnswerEmpty(AnswerInvalid):
    code = "answer_empty"


class AnswerLeaks(AnswerInvalid):
    """The answer quotes its own instructions, as a text that asks for them can bring a model to do."""

    code = "answer_leaks"
    retryable = False


class NoProvider(ProviderError):
    """`reasons` maps each provider to the code that kept it from answering. Retryable when one of them may pass."""

    PERMANENT = frozenset({"not_configured", "no_vision"}) | {
        kind.code
        for kind in (
            ProviderRefused,
            PromptBlocked,
            AnswerBlocked,
            LocalOnly,
            ProviderMisconfigured,
            KeyRejected,
            ModelNotFound,
            ModelCannotSee,
            RequestRejected,
            PromptTooLong,
            AnswerLeaks,
        )
    }

    code = "no_provider"

    def __init__(
        self,
        note: str = "",
        *,
        reasons: dict[str, str] | None = None,
        retry_after: float | None = None,
        **details: Detail,
    ) -> None:
        super().__init__(note, provider="", retry_after=retry_after, **details)
        self.reasons = reasons or {}
        self.retryable = not self.PERMANENT.issuperset(self.reasons.values())


class InferenceUnavailable(WorkerError):
    code = "inference_unavailable"
    retryable = True


class InferenceOutOfMemory(InferenceUnavailable):
    code = "inference_out_of_memory"


class DeadlineExceeded(WorkerError):
    code = "deadline_exceeded"
    retryable = True


class QueueError(WorkerError):
    code = "queue_error"


class DatabaseUnavailable(QueueError):
    code = "database_unavailable"
    retryable = True


class JobNotFound(QueueError):
    code = "job_not_found"


class JobAlreadyFinished(QueueError):
    code = "job_already_finished"


class TooManyActiveJobs(QueueError):
    code = "too_many_active_jobs"


class IdempotencyConflict(QueueError):
    code = "idempotency_conflict"


class NotAuthenticated(WorkerError):
    code = "not_authenticated"


class NotAllowed(WorkerError):
    code = "not_allowed"


class ConfigurationError(WorkerError):
    """`note` says which variable or file to change, and how."""

    code = "configuration_error"


class WeightsUnavailable(ConfigurationError):
    code = "weights_unavailable"
