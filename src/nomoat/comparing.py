"""A tuned run beside its base: both answer, both read, and what came of it is a `Comparison` for report and card.

held-out part -> written by base, by run -> read by both -> learned, forgotten, examples
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nomoat.core.run import Run
from nomoat.texts import spelling, texts_of

if TYPE_CHECKING:
    from nomoat.evaluate.tuned import Comparison

QUESTIONS = 32
"""Held-out prompts that both models answer."""
HELD_OUT_TOKENS = 60_000
"""Held-out tokens of text that both models read at most."""


def compared(run: Run, device: str, general: str | None) -> Comparison:
    """Both models write, one after the other, by the fastest way there is; then both read.

    Args:
        run: at its end, with a start.
        device: where.
        general: a file or folder of text, to see what is forgotten; None: Python's own documentation.
    """
    from nomoat.core.device import choose
    from nomoat.core.run import load
    from nomoat.data.chat import Chat
    from nomoat.data.lessons import Lessons
    from nomoat.evaluate import tuned as compare
    from nomoat.nn.native import quickest

    assert run.recipe.start is not None
    base, place = Run.open(run.recipe.start), choose(device)
    tokenizer, chat, data = spelling(run), Chat.of(run.path), getattr(run.recipe.data, "data", run.recipe.data)
    held: Any = _Talks(data, tokenizer, chat) if isinstance(data, Lessons) else _Texts(data, tokenizer)
    wrote, own = [], list[compare.Told]()
    for each in (run.recipe.start, run):
        writer = quickest(load(each).to(place))
        wrote.append(held.written(writer))
        own = own or compare.own_answers(writer, tokenizer, chat, compare.other_prompts())
        del writer
    models: Any = tuple(load(each).to(place) for each in (run.recipe.start, run))
    texts = compare.general_text() if general is None else list(texts_of([general]).values())
    with run.autocast(place):
        learned, shown = held.compared(models, wrote)
        lost = compare.forgotten(models, tokenizer, compare.pieces(texts), own)
    licence = (base.read_json("ledger.json") or {}).get("licence") or "a licence that is not known"
    about = f"{run.recipe.about} The base, {base.name}, is under {licence}."
    return compare.Comparison(about, learned, lost, shown)


class _Talks:
    """Held-out conversations: the loss of their answers, and some of them answered anew."""

    def __init__(self, data: Any, tokenizer: Any, chat: Any) -> None:
        from nomoat.evaluate import tuned as compare

        self.compare, self.tokenizer, self.chat = compare, tokenizer, chat
        self.held = list(compare.held_out(data))
        step = max(1, len(self.held) // QUESTIONS)
        self.chosen = [messages for messages, _ in self.held[::step]][:QUESTIONS]

    def written(self, writer: Any) -> list[str]:
        asked = [messages[:-1] for messages in self.chosen]
        return [one.text.strip() for _, one in self.compare.answers(writer, self.tokenizer, self.chat, asked)]

    def compared(self, models: Any, wrote: Any) -> Any:
        if not self.held:
            return (), ()
        rouge, shown = self.compare.answers_beside(self.chosen, wrote)
        return (self.compare.answers_learned(models, [told for _, told in self.held]), rouge), shown


class _Texts:
    """Held-out text: its bits per byte, and five of its passages continued."""

    def __init__(self, data: Any, tokenizer: Any) -> None:
        from nomoat.data.shards import ShardReader
        from nomoat.evaluate.bits import Excerpt

        self.data, self.tokenizer, folder = data, tokenizer, data.paths[0]
        self.training = ShardReader(folder, "train")
        self.excerpt = Excerpt.of(ShardReader(folder, "heldout"), HELD_OUT_TOKENS)

    def written(self, writer: Any) -> Any:
        from nomoat.evaluate.passages import continue_passages
        from nomoat.evaluate.report import WRITING

        nowhere = lambda document, lines: ""  # noqa: E731
        return continue_passages(writer, self.tokenizer, self.excerpt, self.training, nowhere, writing=WRITING)

    def compared(self, models: Any, wrote: Any) -> Any:
        from nomoat.evaluate.tuned import Example, text_learned

        shown = [Example(one.prompt, one.written, two.written, one.truth) for one, two in zip(*wrote, strict=True)]
        return (text_learned(models, self.tokenizer, self.excerpt, self.data.context_length),), tuple(shown)
