"""Files that have not been read yet, as recipe data: named in a recipe, ingested when it is first run.

Files(path, vocab_size) -> prepare(root) -> ingest (once for the same files and settings) -> Text(dataset folder)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from nomoat.data.text import Text


@dataclass(frozen=True)
class Files:
    """A file or a folder, and how it is to be read.

    Args:
        path: the file or folder; None: the modules of Python's standard library.
        tokenizer: "bpe", "byte" or "char".
        vocab_size: tokens of the "bpe" tokenizer; None: chosen by the amount of text.
        context_length: tokens that a model sees at once.
        packing: "stream" or "documents"; see `Text`.
        licence: SPDX id of all files; None: what each file says.
    """

    path: str | None = None
    tokenizer: str = "bpe"
    vocab_size: int | None = None
    context_length: int = 256
    packing: str = "stream"
    licence: str | None = None

    def folder(self, root: Path) -> Path:
        """Where the dataset of these files with these settings lies under `root`."""
        source = "python-standard-library" if self.path is None else str(Path(self.path).resolve())
        key = repr((source, self.tokenizer, self.vocab_size, self.licence))
        return root / f"{Path(source).name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def prepare(self, root: Path, watch: Callable[[dict[str, Any]], None] | None = None) -> Text:
        """Read the files into shards under `root`, or find them there, and return the data that a run can stream.

        Files that have changed since they were last read are read into a folder of their own: the runs that were made
        from the older ones keep theirs.

        Raises:
            DataError: nothing to read; see `ingest`.
        """
        from nomoat.data.ingest import ingest
        from nomoat.data.manifest import NAME, changed

        first = self.folder(root)
        folders = (first if number == 1 else first.with_name(f"{first.name}-{number}") for number in count(1))
        folder = next(each for each in folders if not (each / NAME).is_file() or not changed(each))
        source = None if self.path is None else Path(self.path)
        made = ingest(
            source, folder, tokenizer=self.tokenizer, vocab_size=self.vocab_size, licence=self.licence, watch=watch
        )
        if watch is not None and made.dropped:
            watch({"kind": "warning", "text": made.left_out(folder)})
        return Text(str(folder), self.context_length, self.packing, ids=(made.id,))
