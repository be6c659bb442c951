"""Synth: a teacher writes data, many requests at once; nothing that was paid for is lost, and the cap is held.

    seeds -> drafts, in order -> sent -> stored -> read, in the order of the drafts -> new? right? good? -> rows.jsonl
                 ^                                                      |                     \\-> dropped.jsonl, why
                 \\---------- what was accepted up to `ahead` drafts ago -/

What is asked depends on the recipe and on earlier answers in order, never on who answered first: the same command goes
through the same requests again, finds those answers in the store that have come, and asks for the others only.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from nomoat.core import durable
from nomoat.core.config import override
from nomoat.core.energy import meter
from nomoat.core.errors import ConfigError
from nomoat.core.recipe import find
from nomoat.core.teacher import Answers
from nomoat.data import synth_card, synth_methods
from nomoat.data.answers import Store, key_of
from nomoat.data.novelty import Novelty
from nomoat.data.synth import Draft, Seed, Synth, read_seeds
from nomoat.data.synth_forecast import KEPT, Forecast
from nomoat.data.verify import verifier
from nomoat.sending import Job, Sender, money
from nomoat.teachers import open_teacher

Watch = Callable[[Mapping[str, Any]], None]

ALIKE, OF = 15, 20
"""So many answers of the last so many that are the same: the teacher repeats itself."""
ENDLESS = ("self-instruct", "evol")
"""Methods that could go on for ever; the others end with their seeds."""
BARREN = 100
"""Requests in a row that gave nothing: there is nothing new any more."""
FIRST, SHARE = 8, 0.01
"""Rows after which it is foretold what all of them cost: so many, or this share of them."""


class Made(NamedTuple):
    """What was written.

    Args:
        path: the folder, with rows.jsonl, dropped.jsonl, ledger.json, report.json and card.md.
        report: what report.json holds: rows, dropped by reason, status, cost.
    """

    path: Path
    report: dict[str, Any]


def synth(
    recipe: Synth | Path | str,
    changes: Sequence[str] = (),
    output: Path | str | None = None,
    teacher: Answers | None = None,
    keep: Callable[[Mapping[str, Any]], float] | None = None,
    device: str = "auto",
    watch: Watch | None = None,
) -> Made:
    """Write the data of a recipe, or go on with it: what has come is never asked for again.

    Args:
        recipe: a Synth, the name of one, or a .py file with `synth = Synth(...)`.
        changes: fields changed, such as `count=50`.
        output: the folder; None: `synth/NAME`.
        teacher: who answers; None: `recipe.teacher`.
        keep: scores a row; those below `recipe.threshold` are dropped.
        device: where a teacher that is a run computes.
        watch: told {"kind": "synth" | "forecast" | "warning", ...}.

    Raises:
        ConfigError: a recipe that cannot work, or a teacher whose licence nobody has stated.
        DataError: no seeds, or none that can be read.
        RunError: the folder is in use, or the disk is full.
        TeacherError: the teacher does not answer; the same command goes on where it stopped.
    """
    name = recipe.about if isinstance(recipe, Synth) else Path(recipe).stem
    made: Synth = override(recipe if isinstance(recipe, Synth) else find(recipe, Synth), changes)
    seeds = read_seeds(made.seeds, made.seeds_licence)
    if not made.teacher and teacher is None:
        raise ConfigError("the recipe names no teacher", "", "teacher=RUN, or teacher=http://host:8000/v1#model")
    label = "-".join(name.replace("_", "-").lower().split())[:40].strip("-.")
    with ExitStack() as held:
        store = Store(Path(output) if output is not None else Path("synth") / label)
        held.callback(store.close)

        def opened(where: str) -> Answers:
            licence, terms = made.licence or None, made.terms or None
            return held.enter_context(open_teacher(where, licence, terms, device, made.key, made.seconds))

        asked = teacher if teacher is not None else opened(made.teacher)
        judge = None if not made.judge else asked if made.judge == "teacher" else opened(made.judge)
        return _Writing(made, seeds, asked, judge, keep, store, watch or (lambda event: None)).run()


class _Writing:
    """One session of a recipe. The main thread makes drafts and reads answers; others send and store."""

    def __init__(
        self,
        recipe: Synth,
        seeds: list[Seed],
        teacher: Answers,
        judge: Answers | None,
        keep: Callable[[Mapping[str, Any]], float] | None,
        store: Store,
        watch: Watch,
    ) -> None:
        self.recipe, self.seeds, self.teacher, self.judge, self.keep = recipe, seeds, teacher, judge, keep
        self.store, self.watch, self.check, self.limit = store, watch, verifier(recipe.verifier), recipe.limit
        self.rows: list[dict[str, Any]] = []
        self.dropped: list[dict[str, Any]] = []
        self.accepted: list[Seed] = []
        self.novelty, self._answers_to = Novelty(recipe.nearest), set[tuple[str, str]]()
        for seed in seeds:
            self.novelty.add(seed.text)
        self._begun, self._barren, self._lately = 0, 0, deque[str](maxlen=OF)
        self._more: deque[Draft] = deque()
        self._forecast, self._first = Forecast(), ""
        self.sender = Sender(recipe, store)
        self._told, self._foretold, self._meter = time.monotonic(), False, meter()
        self._asked: Counter[tuple[str, str, int]] = Counter()

    def run(self) -> Made:
        """Write until there are enough rows, or no more can be had."""
        pending: deque[Job] = deque()
        status = "done"
        try:
            while len(self.rows) < self.recipe.count:
                while len(pending) < self.recipe.ahead and (draft := self._next()) is not None:
                    pending.append(self._ask(draft))
                if not pending:
                    break
                job = pending.popleft()
                if not job.done.is_set():
                    self._send([job, *pending])
                    job.done.wait()
                if job.answer is None and not job.error:
                    break
                self._read(job)
                self._tell(pending)
        except BaseException as error:
            status = "stopped"
            if isinstance(error, KeyboardInterrupt):
                text = "what is on its way is waited for and kept; Ctrl-C again leaves it"
                self.watch({"kind": "warning", "text": text})
            raise
        finally:
            self.sender.close()
            made = self._finish(self.sender.stopping.strip() or status)
        if self.sender.failure is not None:
            raise self.sender.failure
        return made

    def _stop(self, why: str) -> None:
        if not self.sender.stopping:
            self.sender.stopping = f"stopped: {why}"
            self.watch({"kind": "warning", "text": f"{why}; stopped, and what has come is kept"})

    # Drafts and answers, in order

    def _next(self) -> Draft | None:
        """The next draft; None: there is no more, or none may begin before some of those on their way have come."""
        if self._more:
            return self._more.popleft()
        if self._barren >= BARREN:
            return None
        chance = Random(f"{self.recipe.seed}/{self._begun}")
        draft = synth_methods.METHODS[self.recipe.method].begin(self.seeds, self.accepted, self._begun, chance)
        self._begun += 1
        self._first = draft.stage if draft is not None else self._first
        if draft is not None and draft.stage == "answer":
            self._more += self._samples(draft)
            return self._more.popleft()
        return draft

    def _samples(self, draft: Draft) -> list[Draft]:
        return [replace(draft, sample=number) for number in range(self.recipe.samples)]

    def _ask(self, draft: Draft) -> Job:
        """Hand a draft to whoever sends, unless its answer has come in an earlier session."""
        recipe, scoring = self.recipe, draft.stage == "row"
        who = self.judge if scoring and self.judge is not None else self.teacher
        ask = synth_methods.judged(draft, recipe.rubric) if scoring else draft.ask
        again = self._asked[who.name, ask, draft.sample]  # the same once more: another sample of it
        self._asked[who.name, ask, draft.sample] += 1
        sample = draft.sample + again * recipe.samples
        request = {
            "messages": [{"role": "user", "content": ask}],
            "max_tokens": recipe.max_tokens if draft.stage == "answer" else min(recipe.max_tokens, synth_methods.ASIDE),
            "temperature": 0.0 if scoring else recipe.temperature,
            "top_p": 1.0 if scoring else recipe.top_p,
            "seed": (recipe.seed * 1_000_003 + sample) % 2**31,
        }
        key = key_of(request, who.name, getattr(who, "where", ""), sample)
        job = Job(draft, who, request, key, self.store.find(key))
        if job.answer is not None:
            job.done.set()
        return job

    def _send(self, pending: Sequence[Job]) -> None:
        """Send what is needed for the rows that are missing. Only when one must be waited for: going through what has
        come already sends nothing.
        """
        missing = self.recipe.count - len(self.rows)
        for job in pending:
            if missing <= 0:
                return
            self.sender.put(job)
            missing -= job.draft.stage in ("answer", "row")

    def _read(self, job: Job) -> None:
        """Make of an answer what it gives: further drafts, a row, or nothing, with the reason."""
        draft, answer = job.draft, job.answer
        more, rows = len(self._more), len(self.rows)
        if answer is None:
            self._drop(draft, "no answer", job.error)
        elif draft.stage == "row":
            self._scored(draft, synth_methods.score(answer.text), answer.text)
        elif answer.finish == "refused" or synth_methods.refuses(answer.text):
            self._drop(draft, "refused", answer.text)
        elif answer.finish == "length" and draft.stage == "answer":
            self._drop(draft, "cut off", f"after {answer.completion_tokens} tokens")
        else:
            drafts = synth_methods.read(self.recipe.method, draft, answer.text)
            if not drafts:
                self._drop(draft, "nothing in it", answer.text)
            for each in drafts:
                self._take(each)
        gave = [each.stage for each in [*self._more][more:]] + [KEPT] * (len(self.rows) - rows)
        self._barren = 0 if gave else self._barren + 1
        if answer is not None:
            self._forecast.saw(draft.stage, answer, gave)
        if draft.stage != "row" and answer is not None:
            self._lately.append(answer.text)
            text, times = Counter(self._lately).most_common(1)[0]
            if times >= ALIKE:
                self._stop(f"the teacher repeats itself: {times} of its last {OF} answers are `{text[:60]}`")
        if self._barren >= BARREN:
            self._stop(f"nothing new came of the last {BARREN} answers")

    def _take(self, draft: Draft) -> None:
        """A draft that came out of an answer: only what is new goes on, and a row only if it is right."""
        if draft.topic:
            if len(draft.topic.split()) < synth_methods.SHORTEST:
                return self._drop(draft, "too short", draft.topic)
            if (found := self.novelty.nearest(draft.topic)) is not None:
                return self._drop(draft, "not new", f"ROUGE-L {found[1]:.2f} to number {found[0]}")
            self.novelty.add(draft.topic)
            draft = replace(draft, topic="")
        if draft.stage != "row":
            self._more += self._samples(draft) if draft.stage == "answer" else [draft]
            return None
        if self.check is not None and (wrong := self.check(draft.answer, draft.reference)):
            return self._drop(draft, wrong, draft.answer)
        if (draft.instruction, draft.answer) in self._answers_to:
            return self._drop(draft, "the same answer", draft.answer)
        self._answers_to.add((draft.instruction, draft.answer))
        if self.judge is not None:
            self._more.append(draft)
        elif self.keep is not None:
            self._scored(draft, self.keep(draft.row(self.recipe.method, self.teacher)), "")
        else:
            self._keep(draft, {})
        return None

    def _scored(self, draft: Draft, score: float | None, said: str) -> None:
        if score is None:
            self._drop(draft, "no score", said)
        elif score < self.recipe.threshold:
            self._drop(draft, "below the threshold", f"{score:g} of {self.recipe.threshold:g}: {said}")
        else:
            self._keep(draft, {"score": score, "said": said.strip()})

    def _keep(self, draft: Draft, more: Mapping[str, Any]) -> None:
        row = draft.row(self.recipe.method, self.teacher)
        self.rows.append({**row, **more})
        self.accepted.append(Seed(draft.instruction, draft.answer, row["licence"], row["generation"]))

    def _drop(self, draft: Draft, reason: str, detail: str) -> None:
        row = draft.row(self.recipe.method, self.teacher)
        self.dropped.append({"reason": reason, "detail": detail[:500], "stage": draft.stage, **row})

    # What is told and written

    def _tell(self, pending: Sequence[Job]) -> None:
        """Progress, twice a second; once, after the first rows, what all of them will cost."""
        rows, wanted = len(self.rows), self.recipe.count
        now = time.monotonic()
        due = not self._foretold and rows >= min(wanted, max(FIRST, SHARE * wanted))
        if now - self._told < 0.5 and not due:
            return
        self._told, spent = now, self.store.spent()
        at_hand = [*(job.draft.stage for job in pending), *(draft.stage for draft in self._more)]
        left = synth_methods.METHODS[self.recipe.method].rounds * len(self.seeds) - self._begun
        most = float("inf") if self.recipe.method in ENDLESS else left * self.recipe.samples
        rest = self._forecast.whole(at_hand, self._first, rows, wanted, most)
        tokens = self._forecast.read + rest.read, self._forecast.written + rest.written
        # A pause between sessions costs nothing: seconds follow the tokens written.
        seconds = spent.seconds * tokens[1] / max(1, spent.completion_tokens)
        told: dict[str, Any] = {"rows": rows, "wanted": wanted, "dropped": len(self.dropped)}
        told |= {"tokens": spent.prompt_tokens + spent.completion_tokens, "seconds": spent.seconds}
        self.watch({"kind": "synth", **told, "seconds_left": max(0.0, seconds - spent.seconds)})
        if due:
            self._foretold = True
            self._foretell(round(rows + rest.rows), tokens, seconds)

    def _foretell(self, rows: int, tokens: tuple[float, float], seconds: float) -> None:
        whole = {"tokens": sum(tokens), "seconds": seconds, "money": money(tokens, self.recipe.price)}
        self.watch({"kind": "forecast", "rows": min(rows, self.recipe.count), **whole, "cap": self.recipe.cap})
        if self.limit is not None and whole[self.limit.unit] > self.limit.amount:
            count = int(rows * self.limit.amount / whole[self.limit.unit])
            self.watch({"kind": "warning", "text": f"the cap of {self.recipe.cap} will do for about {count:,} rows"})

    def _finish(self, status: str) -> Made:
        """Write the rows and what is known of them."""
        folder, spent, recipe = self.store.path.parent, self.store.spent(), self.recipe
        for name, lines in (("rows.jsonl", self.rows), ("dropped.jsonl", self.dropped)):
            durable.replace(folder / name, "".join(map(durable.dump, lines)).encode())
        tokens = spent.prompt_tokens, spent.completion_tokens
        cost: dict[str, Any] = {**spent._asdict(), "money": money(tokens, recipe.price)}
        cost["currency"] = self.limit.currency if self.limit is not None else ""
        cost["asked_here"] = spent.answers - self.sender.before.answers
        cost["watt_hours_here"] = self._meter.watt_hours() if self._meter else None
        cost["estimated_here"] = self.sender.tokens["estimated"]
        cost["sent_again_by_http"] = getattr(self.teacher, "sent_again", 0)
        report = {"status": status, "rows": len(self.rows), "wanted": recipe.count}
        report |= {"dropped": dict(Counter(each["reason"] for each in self.dropped).most_common()), "cost": cost}
        report |= {"teacher": self.teacher.name, "licence": self.teacher.licence, "terms": self.teacher.terms}
        durable.replace(folder / "report.json", (json.dumps(durable.strict(report), indent=1) + "\n").encode())
        durable.replace(folder / "ledger.json", synth_card.ledger(self.rows, self.recipe).encode())
        durable.replace(folder / "card.md", synth_card.card(self.recipe, report).encode())
        return Made(folder, report)
