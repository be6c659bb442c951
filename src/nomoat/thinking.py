"""Think longer: one answer by search, and the curve of what more search buys, held against search without a model.

run, question, strategy, verifier, budget -> ModelWriter -> think -> the answer, what it took
run, task -> many answers -> pass@k for k = 1, 2, 4, ... against evaluations, tokens, FLOPs, seconds
          -> beside it: an uninformed policy with the same verifier, and exhaustive search -> curve.json, .csv, .svg
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat.core.errors import ConfigError
from nomoat.core.run import Run, of_text
from nomoat.texts import at_hand

if TYPE_CHECKING:
    from nomoat.search.thoughts import Thinking

Watch = Callable[[Mapping[str, Any]], None]

LIFTED = 0.9
"""An uninformed policy that reaches so much of what the model does: the curve says nothing of the model."""


def think(
    model: Run | Path | str,
    question: str,
    strategy: str = "best-of-n",
    verifier: str | None = None,
    budget: int = 16,
    prm: Run | Path | str | None = None,
    device: str = "cpu",
    seed: int = 0,
    **writing: Any,
) -> Thinking:
    """Answer a question by search.

    Args:
        model: a run that writes text.
        question: as the model reads it; a model that talks is asked as in a conversation.
        strategy: best-of-n, vote, beam, dvts, tot, mcts or particles.
        verifier: what says whether an answer is right, as on the command line; None: the model's own probability.
        budget: answers (best-of-n, vote) or steps (the others) that are written at most.
        prm: a run of `improve --by prm`, which says how promising a beginning is.
        device: where.
        seed: of all chance.
        writing: temperature, max_tokens, mark (what ends a step), min_think, max_think, answer (what the verifier is
            told is right).

    Raises:
        ConfigError: no such strategy or verifier; a budget of nothing; a model that does not write.
    """
    from nomoat.core.device import choose
    from nomoat.core.run import load
    from nomoat.data.chat import Chat, Talking
    from nomoat.sampling.tokens import SamplingOptions
    from nomoat.search.planning import Effort
    from nomoat.search.thoughts import Question, strategy_of
    from nomoat.search.thoughts import think as thinks
    from nomoat.search.writers import Forcing, ModelWriter
    from nomoat.texts import spelling

    if budget < 1:
        raise ConfigError(f"a budget of {budget} buys no thought", fix="use --budget 16")
    run, place = of_text(at_hand(model)), choose(device)
    options = SamplingOptions(writing.get("temperature", 0.8), max_tokens=writing.get("max_tokens", 256), seed=seed)
    family: Any = load(run).to(place)
    if not hasattr(family, "decode"):
        raise ConfigError(f"{run.name} does not write token by token", run.recipe.about, "name a language model")
    tokenizer, chat = spelling(run), Chat.of(run.path)
    forcing = Forcing(writing.get("min_think", 0), writing.get("max_think", 0))
    prompt, begin = question, None
    if not chat.own:  # a model that was taught to talk is asked as in a conversation
        begin = Talking(tokenizer, chat).asked(question)
        prompt, options = "", replace(options, stop=chat.stop)
    writer = ModelWriter(family, tokenizer, options, writing.get("mark", "\n"), forcing=forcing, begin=begin)
    verify = None if verifier is None else _verifier(verifier)
    asked = Question(prompt, {"question": question, "answer": writing.get("answer")})
    assess = None if prm is None else _assess(prm, tokenizer, place, tokenizer.begin if begin is None else begin)
    with run.autocast(place):
        if strategy == "mcts":
            from nomoat.search.text_tree import searched

            return searched([asked], writer, Effort(nodes=budget), assess, verify, seed)[0]
        chosen, effort = strategy_of(strategy, budget)
        return thinks([asked], writer, chosen, effort, assess, verify, seed=seed)[0]


def _verifier(text: str) -> Any:
    from nomoat.search.finding import find
    from nomoat.teachers import open_teacher

    return find(text, opened=open_teacher)


def _assess(prm: Run | Path | str, tokenizer: Any, place: Any, begin: Sequence[int]) -> Any:
    """A process reward as a judge of beginnings."""
    import numpy as np
    import torch

    from nomoat.core.run import load

    run = at_hand(prm)
    family: Any = load(run).to(place)
    if not hasattr(family, "judge"):
        raise ConfigError(
            f"{run.name} judges no beginnings", run.recipe.about, "make one: `nomoat improve RUN TASK --by prm`"
        )

    def judged(prompts: Sequence[str], texts: Sequence[str]) -> Any:
        found = np.zeros(len(texts), np.float32)
        rows = [[*begin, *map(int, tokenizer.encode(p + t))] for p, t in zip(prompts, texts, strict=True)]
        for length in {len(row) for row in rows}:
            some = [number for number, row in enumerate(rows) if len(row) == length]
            found[some] = family.judge(torch.tensor([rows[n] for n in some], device=place)).float().cpu().numpy()
        return found

    return judged


def curve(
    model: Run | Path | str,
    task: str,
    tries: int = 64,
    questions: int = 200,
    device: str = "cpu",
    seed: int = 0,
    watch: Watch | None = None,
) -> Curve:
    """What more tries buy, beside the two controls; written into the run as curve.json, curve.csv and curve.svg.

    Args:
        model: a run of a language model.
        task: `countdown:5`, `game24:FILE`, or `VERIFIER:FILE.jsonl`.
        tries: answers to each question; those of the curve are 1, 2, 4, ... of them.
        questions: of the exam, at most.
        device: where.
        seed: of all chance.
        watch: told what happens.

    Raises:
        ConfigError: there is no such task; fewer than one try or question.
    """
    import numpy as np

    from nomoat.core.device import choose
    from nomoat.core.run import load
    from nomoat.data.chat import talking
    from nomoat.search.tasks import find
    from nomoat.search.worded import pass_at

    if min(tries, questions) < 1:
        raise ConfigError(f"{tries} tries of {questions} questions make no curve", fix="use --tries 64 --questions 200")
    run, found, place = of_text(at_hand(model)), find(task), choose(device)
    family: Any = load(run).to(place)
    spelling = talking(run.path)
    asked, right, written, read, seconds = found.exam(questions), list[Any](), 0, 0, 0.0
    for number in range(tries):
        if watch is not None:
            watch({"kind": "phase", "phase": "writing answers", "step": number, "steps": tries})
        began = time.perf_counter()
        with run.autocast(place):
            attempts = found.attempts(family, spelling, asked, 1, seed * 100_003 + number)
        seconds += time.perf_counter() - began
        right.append(attempts.right >= 1)
        written, read = written + int(attempts.mask.sum()), read + int((attempts.tokens >= 0).sum())
    solved = np.stack(right, 1)
    count, each = len(solved), len(solved) * tries
    flops = 2.0 * sum(p.numel() for p in family.parameters()) * read / each
    ks = [2**power for power in range(tries.bit_length()) if 2**power <= tries]
    blind, states = found.blind(asked, tries, seed + 1), found.exhaustive(asked)
    points = [
        Point(
            k,
            *_interval(pass_at(solved, k)),
            None if blind is None else _interval(pass_at(np.asarray(blind), k)),
            k * written / each,
            k * flops,
            k * seconds / each,
        )
        for k in ks
    ]
    everything = None if states is None else (float(np.mean(states[0])), float(np.mean(states[1])))
    verify = getattr(found, "verify", None)
    late = (0, 0) if verify is None else (verify.timeouts, verify.failures)
    made = Curve(run.name, found.name, count, tuple(points), everything, late)
    run.write_json("curve.json", made.as_json())
    run.write_text("curve.csv", made.as_csv())
    run.write_text("curve.svg", made.as_svg())
    return made


def _interval(share_B: Any) -> tuple[float, float, float]:
    """The mean over questions and its 95 % interval, by drawing the questions again."""
    import numpy as np

    chance = np.random.default_rng(0)
    means = share_B[chance.integers(len(share_B), size=(1000, len(share_B)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(share_B.mean()), float(low), float(high)


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Args:
        tries: k.
        right, low, high: share of the questions that one of k answers solves, and its 95 % interval.
        blind: the same three of an uninformed policy with the same verifier.
        tokens, flops, seconds: of a question, that k tries take.
    """

    tries: int
    right: float
    low: float
    high: float
    blind: tuple[float, float, float] | None
    tokens: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Curve:
    """What more tries buy.

    Args:
        run, task: names.
        questions: how many.
        points: the fewest tries first.
        everything: how many states exhaustive search visits for a question, and the share that it solves.
        late: verdicts that were late, and that broke.
    """

    run: str
    task: str
    questions: int
    points: tuple[Point, ...]
    everything: tuple[float, float] | None
    late: tuple[int, int] = (0, 0)

    @property
    def warning(self) -> str:
        """What the controls expose; empty where they expose nothing."""
        last = self.points[-1]
        if last.blind is not None and last.blind[0] >= 1 and last.right >= 1:
            return "an uninformed policy is always right: this verifier says yes to everything, or anything is right"
        if last.blind is not None and last.blind[0] >= LIFTED * last.right > 0:
            return (
                f"with {last.tries} tries an uninformed policy does {last.blind[0]:.0%}: this says little of the model"
            )
        if self.everything is not None and self.everything[0] <= last.tries:
            return f"exhaustive search needs {self.everything[0]:.0f} states: {last.tries} tries prove nothing"
        return ""

    def as_text(self) -> str:
        """A table."""
        lines = [f"{self.run} on {self.task}, {self.questions} questions"]
        lines.append(f"{'tries':>6}{'right':>8}{'(95 %)':>16}{'blind':>8}{'tokens':>9}{'FLOPs':>10}{'seconds':>9}")
        for p in self.points:
            blind = "" if p.blind is None else f"{p.blind[0]:.1%}"
            span = f"({p.low:.1%} to {p.high:.1%})"
            lines.append(
                f"{p.tries:>6}{p.right:>8.1%}{span:>17}{blind:>7}{p.tokens:>9.0f}{p.flops:>10.2g}{p.seconds:>9.3f}"
            )
        if self.everything is not None:
            lines.append(f"everything: {self.everything[0]:,.0f} states a question, {self.everything[1]:.1%} right")
        if any(self.late):
            lines.append(f"verdicts that were late: {self.late[0]}, that broke: {self.late[1]}")
        return "\n".join([*lines, *([f"note: {self.warning}"] if self.warning else [])])

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        from dataclasses import asdict

        return {**asdict(self), "warning": self.warning}

    def as_csv(self) -> str:
        """A row a point."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("tries", "right", "low", "high", "blind", "tokens", "flops", "seconds"))
        for p in self.points:
            blind = "" if p.blind is None else p.blind[0]
            writer.writerow((p.tries, p.right, p.low, p.high, blind, p.tokens, p.flops, p.seconds))
        return file.getvalue()

    def as_svg(self) -> str:
        """A picture: share right against tries (doubling), with the interval, and the controls."""
        from nomoat.evaluate.plot import Line, plot

        xs = [p.tries for p in self.points]
        lines = [Line(self.run, xs, [p.right for p in self.points], [(p.low, p.high) for p in self.points])]
        if all(p.blind is not None for p in self.points):
            blind = [p.blind for p in self.points if p.blind is not None]
            lines.append(Line("blind, same verifier", xs, [b[0] for b in blind], [b[1:] for b in blind], dashed=True))
        if self.everything is not None:
            named = f"exhaustive, {self.everything[0]:,.0f} states"
            lines.append(Line(named, xs, [self.everything[1]] * len(xs), None, dashed=True))
        return plot(lines, f"{self.task}: one of k answers is right", "answers to a question (k)", "share right")
