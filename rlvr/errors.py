"""Every error that a person is meant to read: what, where, got, expected, what to do."""


class RLVRError(Exception):
    """Base of all errors of this package."""


class ConfigError(RLVRError, ValueError):
    """A recipe that cannot be run. Carries every problem found, not the first alone."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(RLVRError, ValueError):
    """A dataset row, file or answer that cannot be used."""


class VerifierError(RLVRError, RuntimeError):
    """A verifier that cannot be loaded or started (a failing *verdict* is a `Verdict.error`, never this)."""


class EngineError(RLVRError, RuntimeError):
    """An engine (sampler, policy, weight sync) that failed or exceeded its time limit."""


class ReplicaBroken(EngineError):
    """A living sampler whose weights cannot be trusted: an update of them failed half way. The next push mends it."""


class HandshakeError(EngineError):
    """Sampler and trainer disagree on log-probabilities."""


class CheckpointError(RLVRError, RuntimeError):
    """A checkpoint that cannot be written, or is damaged, incomplete or of another run."""
