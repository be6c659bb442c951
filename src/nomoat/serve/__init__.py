"""Answering over HTTP: an engine for each model, and OpenAI's endpoints in front of it."""
