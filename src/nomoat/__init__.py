"""nomoat: a folder and a budget go in, a model you own comes out.

    import nomoat
    run = nomoat.make("my-folder", budget="30m")
    print(nomoat.generate(run, "Once upon a time"))

Nothing is imported until it is used: `import nomoat` costs milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nomoat.verbs import doctor, evaluate, generate, load, make, plan, resume, runs, surprise, train

__version__ = "0.1.0"
__all__ = ["doctor", "evaluate", "generate", "load", "make", "plan", "resume", "runs", "surprise", "train"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in __all__:
        return getattr(import_module("nomoat.verbs"), name)
    raise AttributeError(f"module 'nomoat' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
