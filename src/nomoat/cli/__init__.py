r"""The terminal: the library's verbs as commands, with help on one screen, JSON lines and a live display.

    arguments -> entry (finds the verb, turns errors into words and exit codes) -> command -> nomoat.verbs
                                                                             \-> Output: terminal, lines or JSON

No module here imports torch, numpy, pyarrow or rich before a command needs them: `nomoat --help` takes 0.3 s at most.
"""

from __future__ import annotations

from nomoat.cli.entry import main

__all__ = ["main"]
