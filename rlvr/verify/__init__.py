"""Runs verifiers: killable child processes, limits, verdicts."""
