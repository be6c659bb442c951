"""Serving: one engine for each model, which writes many texts at once."""
