"""nomoat: a folder and a budget go in, a model you own comes out.

    import nomoat
    run = nomoat.make("my-folder", budget="30m")
    print(nomoat.generate(run, "Once upon a time"))

Nothing is imported until it is used: `import nomoat` costs milliseconds.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nomoat.composing import compose
    from nomoat.controlling import control
    from nomoat.distilling import distil
    from nomoat.drawing import draw
    from nomoat.improving import improve
    from nomoat.judging import arena, judge
    from nomoat.licensing import licence
    from nomoat.preferring import prefer
    from nomoat.quantising import quantize
    from nomoat.selfplaying import selfplay
    from nomoat.synthesising import synth
    from nomoat.teachers import open_teacher
    from nomoat.thinking import curve, think
    from nomoat.tuning import tune
    from nomoat.verbs import (
        chat,
        doctor,
        evaluate,
        export,
        generate,
        import_model,
        load,
        make,
        plan,
        pull,
        resume,
        runs,
        serve,
        surprise,
        train,
    )

__version__ = "0.1.0"
__all__ = [
    "arena", "chat", "compose", "control", "curve", "distil", "doctor", "draw", "evaluate", "export",
    "generate", "import_model", "improve", "judge", "licence", "load", "make", "open_teacher", "plan", "prefer",
    "pull", "quantize", "resume", "runs", "selfplay", "serve", "surprise", "synth", "think", "train", "tune",
]  # fmt: skip
_HOMES = {
    "arena": "nomoat.judging",
    "compose": "nomoat.composing",
    "control": "nomoat.controlling",
    "distil": "nomoat.distilling",
    "draw": "nomoat.drawing",
    "curve": "nomoat.thinking",
    "improve": "nomoat.improving",
    "judge": "nomoat.judging",
    "licence": "nomoat.licensing",
    "open_teacher": "nomoat.teachers",
    "prefer": "nomoat.preferring",
    "quantize": "nomoat.quantising",
    "selfplay": "nomoat.selfplaying",
    "synth": "nomoat.synthesising",
    "think": "nomoat.thinking",
    "tune": "nomoat.tuning",
}
"""Where a verb is defined, unless in `nomoat.verbs`."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "nomoat.verbs")), name)
    raise AttributeError(f"module 'nomoat' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Part(ModuleType):
    """A part that bears a verb's name (`train`, `evaluate`, `doctor`): calling it is calling the verb."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(_HOMES.get(name, "nomoat.verbs")), name)(*arguments, **options)


class _Package(ModuleType):
    """Importing a part sets it as an attribute here, over the verb of the same name: both must go on working."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value.__class__ = _Part
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
