"""Choices with names, each with its expected number."""
