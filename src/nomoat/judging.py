"""Judge and arena: which of two models, or of several, answers better, by a judge whose own worth stands beside it.

prompts -> answers of each (a run writes them, a file holds them) -> votes in both orders -> Verdict, judge.json
prompts, several -> all pairs that were not judged yet -> arena.json -> ladder
reference preferences -> the judge's agreement, measured once and kept beside the runs
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat.core.errors import ConfigError, DataError, NomoatError
from nomoat.core.run import Run
from nomoat.core.runs import runs_root
from nomoat.data.preferences import answers_of, preferred, prompts_of

if TYPE_CHECKING:
    from nomoat.evaluate.judging import Agreement, Comparison, Judge, Numbers, Pair
    from nomoat.evaluate.ladder import Rung

Watch = Callable[[Mapping[str, Any]], None]

REFERENCE_PAIRS = 100
EXAMPLES = 3
AT_ONCE = 8
UNMEASURED = "agreement not measured: --reference FILE takes pairs with a known preference"


@dataclass(frozen=True)
class Contestant:
    """A name and its answer to each prompt."""

    name: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """How answers are written and judged.

    Args:
        temperature, max_tokens, seed: of the answers; 0 takes the likeliest token each time.
        device: where runs compute.
        reference: a file of pairs with a known preference; None: `default_reference()`.
        reference_pairs: so many of them.
    """

    temperature: float = 0.0
    max_tokens: int = 256
    seed: int = 0
    device: str = "auto"
    reference: Path | str | None = None
    reference_pairs: int = REFERENCE_PAIRS


@dataclass(frozen=True)
class Verdict:
    """What a judge said of A and B.

    Args:
        a, b, judge: names.
        comparison: the figures.
        agreement: of the judge with the reference; None: not measured.
        examples: up to three wins of each, the clearest first: {winner, prompt, a, b}.
        warnings: in words.
    """

    a: str
    b: str
    judge: str
    comparison: Comparison
    agreement: Agreement | None
    examples: tuple[Mapping[str, str], ...]
    warnings: tuple[str, ...] = ()


def judge(
    a: Run | Path | str,
    b: Run | Path | str,
    prompts: Path | str,
    by: str,
    options: Options = Options(),
    watch: Watch | None = None,
) -> Verdict:
    """Compare two models, or two files of answers, in both orders.

    Args:
        a: a run, which answers the prompts; or a .jsonl file with an answer to each.
        b: the other one.
        prompts: a .txt or .jsonl.
        by: the judge: a run (a language model judges by the letters A and B, a reward model by its scores),
            `likelihood:RUN`, an address of an OpenAI-compatible server (`http://host/v1#model`), or `length`.
        options: how answers are written, and what the judge is measured on.
        watch: told the progress.

    Raises:
        DataError: no prompts, fewer answers than prompts, a reference without preferences.
        ConfigError, RunError: no such run, or one that cannot answer or judge.
    """
    from nomoat.evaluate import judging

    asked = prompts_of(prompts)
    first, second = (contestant(each, asked, options, watch) for each in (a, b))
    with opened(by, options.device) as judge_:
        measured = worth(judge_, by, options, watch)
        pairs = [judging.Pair(*each) for each in zip(asked, first.answers, second.answers, strict=True)]
        votes = judging.ask(judge_, pairs)
    found = judging.compare(votes, pairs, options.seed)
    return Verdict(
        *(first.name, second.name, judge_.name, found, measured),
        examples=tuple(_examples(votes.verdicts, votes.forth_N - votes.back_N, pairs)),
        warnings=(*_partial(by, (str(a), str(b), first.name, second.name)), *_unsound(found)),
    )


def arena(
    runs: Sequence[Run | Path | str],
    prompts: Path | str,
    by: str,
    path: Path | str = "arena.json",
    options: Options = Options(),
    watch: Watch | None = None,
) -> tuple[list[Rung], Agreement | None]:
    """Let each contestant meet each, and rank them; what `path` holds already is not written or judged again.

    Args:
        runs: contestants, as in `judge`, beside those that `path` knows.
        prompts: as in `judge`.
        by: as in `judge`.
        path: what is kept: answers, verdicts and the ladder.
        options: as in `judge`.
        watch: told the progress.

    Raises:
        ConfigError: a contestant twice, fewer than two, or `path` holds another judge's verdicts or other prompts.
        DataError: as in `judge`.
    """
    import numpy as np

    from nomoat.evaluate import judging
    from nomoat.evaluate.ladder import ladder

    asked, file = prompts_of(prompts), Path(path)
    held = _held(file, {"judge": by, "prompts": hashlib.sha256(json.dumps(asked).encode()).hexdigest()})
    fresh = [contestant(each, asked, options, watch, held["answers"]) for each in runs]
    if again := next(
        (one.name for place, one in enumerate(fresh) if one.name in [o.name for o in fresh[:place]]), None
    ):
        raise ConfigError(f"{again} is named twice", "nobody can be compared with itself", "name each once")
    held["answers"] |= {one.name: list(one.answers) for one in fresh}
    names = [*held["answers"]]
    if len(names) < 2:
        raise ConfigError(f"there is only {names[0]} in this arena", "a ladder needs two", "name another run")
    with opened(by, options.device) as judge_:
        measured = worth(judge_, by, options, watch)
        for left, right in combinations(names, 2):
            if f"{left}|{right}" in held["verdicts"]:
                continue
            answers = zip(asked, held["answers"][left], held["answers"][right], strict=True)
            verdict_N = judging.ask(judge_, [judging.Pair(*each) for each in answers]).verdicts
            held["verdicts"][f"{left}|{right}"] = [None if np.isnan(each) else int(each) for each in verdict_N]
            keep(file, held)  # a kill costs one pair
            _tell(watch, {"kind": "pair", "a": left, "b": right})
    score_NXX = np.full((len(asked), len(names), len(names)), np.nan)
    for x, y in combinations(range(len(names)), 2):
        verdict_N = np.array(held["verdicts"][f"{names[x]}|{names[y]}"], dtype=np.float64)
        score_NXX[:, x, y], score_NXX[:, y, x] = (1 + verdict_N) / 2, (1 - verdict_N) / 2
    rungs = ladder(names, score_NXX, options.seed)
    keep(file, held | {"ladder": [asdict(rung) for rung in rungs], "agreement": measured and asdict(measured)})
    for text in _partial(by, [*map(str, runs), *names]):
        _tell(watch, {"kind": "warning", "text": text})
    return rungs, measured


def contestant(
    where: Run | Path | str,
    prompts: Sequence[str],
    options: Options,
    watch: Watch | None = None,
    known: Mapping[str, Sequence[str]] | None = None,
) -> Contestant:
    """The answers of a run, which writes those that are not `known` by its name; or of a .jsonl file.

    Raises:
        DataError: a file with a row without an answer, or with fewer or more answers than prompts.
        ConfigError: a file with other answers than were judged by its name before.
    """
    known = known or {}
    if str(where).removesuffix(".gz").endswith((".jsonl", ".json")):
        name = Path(str(where)).name.partition(".")[0]
        found = answers_of(str(where))
        if len(found) != len(prompts):
            why = f"there are {len(prompts):,} prompts"
            raise DataError(f"{where} has {len(found):,} answers", why, "give one to each prompt, in the same order")
        if [*known.get(name, found)] != found:
            raise ConfigError(f"{where} has other answers than were judged as {name}", "", "give it another file name")
        return Contestant(name, tuple(found))
    run = Run.open(where)
    if run.name in known:
        return Contestant(run.name, tuple(known[run.name]))
    return Contestant(run.name, tuple(_written(run, prompts, options, watch)))


def _written(run: Run, prompts: Sequence[str], options: Options, watch: Watch | None) -> Iterator[str]:
    """What a run answers, several prompts at once, each with chance of its own."""
    from nomoat.teachers import open_teacher

    def answer(numbered: tuple[int, str]) -> str:
        talk = [{"role": "user", "content": numbered[1]}]
        seed = options.seed + numbered[0]
        return writer.answer(talk, max_tokens=options.max_tokens, temperature=options.temperature, seed=seed).text

    with open_teacher(run, device=options.device) as writer, ThreadPoolExecutor(AT_ONCE) as pool:
        for done, text in enumerate(pool.map(answer, enumerate(prompts)), 1):
            yield text
            _tell(watch, {"kind": "answer", "run": run.name, "done": done, "total": len(prompts)})


@contextmanager
def opened(by: str, device: str = "auto") -> Iterator[Judge]:
    """The judge called `by`; see `judge`.

    Raises:
        ConfigError, RunError: there is none, or it cannot judge.
    """
    from nomoat.evaluate import judges
    from nomoat.evaluate.judging import Longer

    if by == "length":
        yield Longer()
    elif "://" in by:
        from nomoat.teachers import open_teacher

        with open_teacher(by, licence="unknown", terms="unknown", device=device) as answerer:
            yield judges.Spoken(answerer)
    else:
        from nomoat.core.device import choose
        from nomoat.core.run import load, of_text
        from nomoat.data.chat import Chat
        from nomoat.texts import spelling

        kind, _, where = by.rpartition(":") if by.startswith("likelihood:") else ("", "", by)
        run = of_text(Run.open(where))
        model: Any = load(run).to(choose(device))
        given = (by if kind else run.name, model, spelling(run), Chat.of(run.path))
        if kind:
            yield judges.likelihood(*given)
        else:
            yield judges.reward(*given) if judges.is_reward(model) else judges.Letters(*given)


def worth(judge_: Judge, by: str, options: Options, watch: Watch | None = None) -> Agreement | None:
    """How often the judge prefers what the reference prefers: measured once, then read from the runs' folder.

    Raises:
        DataError: the reference has no pairs with a preference.
    """
    from nomoat.evaluate import judging

    path = options.reference or default_reference()
    if path is None:
        return None
    pairs, weight_N = judging.drawn(preferred(path), options.reference_pairs)
    key = hashlib.sha256(json.dumps([judge_.name, by, pairs]).encode()).hexdigest()[:16]
    kept = runs_root() / "judges" / f"{key}.json"
    if kept.is_file():
        return judging.Agreement(**json.loads(kept.read_text(encoding="utf-8")))
    _tell(watch, {"kind": "phase", "text": f"measuring the judge on {len(pairs):,} reference pairs, both orders"})
    found = judging.agreement(judge_, pairs, weight_N)
    kept.parent.mkdir(parents=True, exist_ok=True)
    keep(kept, asdict(found))
    return found


def default_reference() -> Path | None:
    """AlpacaEval's pairs in the folder that $NOMOAT_SHARED names, where they are."""
    import os

    path = Path(os.environ.get("NOMOAT_SHARED") or "nowhere") / "data" / "alpaca-eval-pairs" / "pairs.jsonl.gz"
    return path if path.is_file() else None


def _partial(by: str, names: Sequence[str]) -> list[str]:
    """A warning where the judge is one of the contestants."""
    where = by.removeprefix("likelihood:")
    try:
        own = {where, Run.open(where).name} if "://" not in where and where != "length" else {where}
    except NomoatError:  # `opened` has said what is wrong with it
        own = {where}
    return [f"the judge {where} is one of the contestants: judges prefer their own answers"] if own & {*names} else []


def _unsound(found: Comparison) -> list[str]:
    """What else makes the figures worth less."""
    said = []
    if found.invalid:
        said.append(f"{found.invalid:,} pairs were not counted: the judge answered neither A nor B")
    if max(found.longer, 1 - found.longer) > 0.9:
        said.append("one side nearly always writes more: the length-controlled rate is an extrapolation")
    return said


def _examples(verdict_N: Numbers, margin_N: Numbers, pairs: Sequence[Pair]) -> Iterator[dict[str, str]]:
    """The clearest wins of each."""
    for winner, sign in (("a", 1), ("b", -1)):
        won = [place for place, verdict in enumerate(verdict_N) if verdict == sign]
        for place in sorted(won, key=lambda place: -sign * margin_N[place])[:EXAMPLES]:
            pair = pairs[place]
            yield {"winner": winner, "prompt": pair.prompt, "a": pair.first, "b": pair.second}


def _held(path: Path, same: Mapping[str, str]) -> dict[str, Any]:
    """What an arena file holds, or an empty one.

    Raises:
        ConfigError: it is of another judge or of other prompts, or no arena.
    """
    if not path.exists():
        return {**same, "answers": {}, "verdicts": {}}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        differs = [name for name, value in same.items() if held[name] != value]
        whole = isinstance(held["answers"], dict) and isinstance(held["verdicts"], dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no arena", f"{type(error).__name__}: {error}", "name another --out") from error
    if differs or not whole:
        why = f"it was begun with another {' and other '.join(differs)}" if differs else "its parts are missing"
        raise ConfigError(f"{path} cannot be extended", why, "name another --out")
    return held


def keep(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    from nomoat.core.durable import replace, strict

    replace(path, (json.dumps(strict(value), ensure_ascii=False, indent=1) + "\n").encode())


def _tell(watch: Watch | None, event: Mapping[str, Any]) -> None:
    if watch is not None:
        watch(event)
