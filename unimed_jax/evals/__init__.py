"""Evaluators of a task, and zero-shot benchmark suites."""
