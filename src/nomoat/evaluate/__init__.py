"""Measuring: metrics and tasks that see only capabilities, never a family."""
