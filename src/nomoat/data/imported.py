"""Recipe data of a model that was imported: whose weights they are, and nothing to train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nomoat.core.errors import ConfigError
from nomoat.core.types import Batch


@dataclass(frozen=True)
class Imported:
    """Where a model's weights came from.

    Args:
        source: the file or folder.
        sha256: of the file with the weights; of several, of the lines `<sha256>  <name>` in order of their names.
        format: `GGUF`, `Hugging Face`, `llama2.c` or `TAESD`.
    """

    source: str
    sha256: str
    format: str

    @property
    def absent(self) -> str:
        """Why there is no text here, in words."""
        return f"its weights were imported from {self.source}; the text that they were trained on did not come along"

    def stream(self, family: Any, batch_size: int, seed: int, start: int = 0, **world: int) -> Iterator[Batch]:
        """There is nothing to read.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("an imported model has nothing to train on", self.absent, "start a recipe from it: start=RUN")
