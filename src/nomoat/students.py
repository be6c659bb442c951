"""Students: who a large model is to teach, a run, a recipe or a size in parameters; and in which words it reads.

15M -> vocabulary cut to what the teacher wrote -> width and depth that read so many parameters a token -> LM
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nomoat.core.errors import ConfigError, NomoatError
from nomoat.core.recipe import Ref, find
from nomoat.core.run import Run
from nomoat.texts import at_hand, spelling


@dataclass(frozen=True)
class Student:
    """What is to be taught.

    Args:
        words: a folder with its tokenizer.json and chat.json.
        config: of its family; None: of `parameters`, once the context is known.
        start: what it begins with.
        parameters: read a token.
    """

    words: Path
    config: Any = None
    start: Ref | None = None
    parameters: float = 0.0

    def configured(self, context_length: int) -> Any:
        """Its config."""
        return self.config or sized(self.parameters, vocabulary_of(self.words), context_length)


def student_of(name: Run | Path | str, teacher: Run | None, texts: Sequence[str], folder: Path, most: int,
               own_words: bool = True) -> Student:  # fmt: skip
    """A run, a recipe or a size such as `15M`.

    Args:
        name: which.
        teacher: gives a new student its tokenizer; None: it is trained on `texts`.
        texts: what the teacher wrote.
        folder: where a new student's words are put.
        most: tokens of a new vocabulary.
        own_words: whether a new student has a vocabulary and template of its own; else they are the teacher's.

    Raises:
        RunError, ConfigError: there is neither run nor recipe of that name.
        ConfigError: a run without tokenizer.
    """
    if size := _size(str(name)):
        return Student(_words(teacher, texts, folder, most, own_words), parameters=size)
    try:
        known = at_hand(name)
    except NomoatError as error:
        try:
            recipe = find(str(name))
        except ConfigError:
            raise error from None
        words = _words(teacher, texts, folder, recipe.family.vocab_size, own_words)
        return Student(words, replace(recipe.family, vocab_size=vocabulary_of(words)))
    spelling(known)
    return Student(known.path, known.recipe.product, Ref(str(known.path.resolve())).pinned())


def vocabulary_of(words: Path) -> int:
    """Tokens of a folder's tokenizer."""
    from nomoat.data.tokenizer import load as read

    return read(words / "tokenizer.json").vocab_size


def _size(text: str) -> float | None:
    """Parameters of `15M`, or None."""
    number, scale = text[:-1], {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:])
    return float(number) * scale if scale and number.replace(".", "", 1).isdigit() else None


def _words(teacher: Run | None, texts: Sequence[str], folder: Path, most: int, own_words: bool) -> Path:
    """A new student's tokenizer and template: the teacher's vocabulary cut to what it wrote, or one of its own."""
    from nomoat.data.chat import OWN
    from nomoat.data.cut import cut
    from nomoat.data.foreign_tokenizer import ForeignTokenizer
    from nomoat.data.tokenizer import EOT, train_bpe

    words = folder / (f"words-{most}" if own_words else "words")
    words.mkdir(parents=True, exist_ok=True)
    held: dict[str, Any] = {"eos": EOT, "add_bos": False}
    if teacher is None:
        train_bpe(texts, max(257, most)).save(words / "tokenizer.json")
    else:
        tokenizer, held = spelling(teacher), teacher.read_json("chat.json") or held
        if own_words and isinstance(tokenizer, ForeignTokenizer) and tokenizer.vocab_size > most:
            text = json.dumps(cut(tokenizer, texts, most), ensure_ascii=False)
            (words / "tokenizer.json").write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(teacher.path / "tokenizer.json", words / "tokenizer.json")
    chat = {**held, "template": OWN, "bos": None, "add_bos": False} if own_words else held
    (words / "chat.json").write_text(json.dumps(chat), encoding="utf-8")
    return words


def sized(parameters: float, vocab_size: int, context_length: int) -> Any:
    """A language model that reads about so many parameters a token, and no more: all matrices and the output layer.

    Raises:
        ConfigError: the output layer alone is larger.
    """
    from nomoat.families.lm import LM
    from nomoat.nn.backbone import Backbone

    found = []
    for width in range(32, 4097, 32):
        layer = 12 * width * width
        if depth := int((parameters - vocab_size * width) // (0.9 * layer)):
            heads = max(1, width // 64)
            left = parameters - vocab_size * width - depth * 4 * width * width
            inner = int(left / (3 * width * depth)) // 32 * 32
            if depth > 1 and 2 * width <= inner <= 3.2 * width and width % heads == 0 and (width // heads) % 2 == 0:
                found.append((abs(math.log(width / depth / 55)), width, depth, heads, inner))
    if not found:
        least = 32 * vocab_size + 2 * 12 * 32 * 32
        why = f"its {vocab_size:,} tokens need an output layer"
        fix = f"ask for {least:,} or more, or a smaller --vocabulary"
        raise ConfigError(f"{parameters:,.0f} parameters are too few", why, fix)
    _, width, depth, heads, inner = min(found)
    return LM(vocab_size, context_length, Backbone(width=width, depth=depth, heads=heads, mlp_width=inner))
