"""Preferences as training data: a prompt with a chosen and a rejected answer, or single answers called good or bad.

    files -> rows -> Preference -> Chat.tokens of both sides -> what cannot teach is left out, with the reason
          -> a tenth of the prompts held out, by their contents -> the model's log-probabilities, once -> a folder
    step -> Order -> items -> Batch (tokens, mask [B, 2, L], reference [B, 2], label, index)

Rafailov et al. 2023, arXiv:2305.18290; Ethayarajh et al. 2024, arXiv:2402.01306.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nomoat.core import device as machine
from nomoat.core import durable
from nomoat.core.errors import ConfigError, DataError
from nomoat.core.ledger import Entry, summarise
from nomoat.core.recipe import Ref
from nomoat.core.run import Run, load
from nomoat.core.types import Batch, Scores
from nomoat.data.chat import Chat
from nomoat.data.conversations import SUFFIXES, tables_of
from nomoat.data.document import Document, Dropped
from nomoat.data.licence import LicenceFinder
from nomoat.data.manifest import DROPPED, NAME, Manifest, changed, digest
from nomoat.data.order import Order
from nomoat.data.preference import CONVERSATION, Messages, preference
from nomoat.data.readers import Found, losses, walk
from nomoat.data.streams import UnreadableError
from nomoat.data.tokenizer import Tokenizer
from nomoat.data.tokenizer import load as read_tokenizer
from nomoat.sampling.write import device_of

ARRAYS, REFERENCE = "pairs.npz", "reference.npz"
HELD_OUT = 10  # one prompt in so many
ROUND = 16  # rows are padded to a multiple of it, so that few shapes occur
SCORED_TOKENS = 4096
Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Pairs:
    """Recipe data: preferences as a model spells and scores them.

    Args:
        source: a file or folder of jsonl, json, csv or parquet, also packed.
        model: the run whose tokenizer and chat template spell them, and whose log-probabilities are the reference.
        context_length: most tokens of a row: a prompt that fills it is left out, an answer is cut at it, both counted.
        single: learn from single answers called good or bad; a pair then counts as two.
        scored: whether the loss asks for the log-probabilities before training.
        licence: SPDX id of everything, in place of what stands beside the files.
        folder: where they lie once prepared.
        id: of the folder's contents as they were when the recipe was resolved.
    """

    source: str
    model: Ref
    context_length: int = 512
    single: bool = False
    scored: bool = True
    licence: str | None = None
    folder: str = ""
    id: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """The dataset's folder, for the card."""
        return (self.folder,) if self.folder else ()

    def changed(self) -> list[str]:
        """Say in words how the data differs from what the recipe was resolved with; [] where it does not."""
        if Manifest.load(self.folder).id != self.id:
            return [f"the pairs in {self.folder} were made anew from other files"]
        return changed(self.folder)

    def prepare(self, root: Path, watch: Watch | None = None) -> Pairs:
        """Read the files into a folder under `root`, or find them there.

        Raises:
            ConfigError: no such file or model, or a model that cannot score.
            DataError: nothing to learn from, with the reasons.
        """
        source = Path(self.source)
        if not source.exists():
            raise ConfigError(f"there is no file or folder {source}", "", "name one with pairs of answers")
        run = Run.open(self.model)
        files = [found for found in walk(source) if isinstance(found, Found)]
        asked: list[Any] = [str(self.model.pinned()), self.context_length, self.single, self.licence]
        asked.append([(found.shown, digest(found.path)) for found in files])
        request = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        folder = root / f"{source.name.split('.')[0]}-pairs-{request[:8]}"
        if not (folder / NAME).is_file():
            _Writing(self, run, folder, files, watch).run(request)
        made = Manifest.load(folder)
        cut = made.settings["cut"]
        words = [made.left_out(folder), f"{cut:,} answers are cut at {self.context_length:,} tokens." if cut else ""]
        if watch is not None and any(words):
            watch({"kind": "warning", "text": " ".join(filter(None, words))})
        ready = replace(self, folder=str(folder), id=made.id)
        if self.scored:
            Scored(ready).write(run, watch)
        return ready

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on, without end."""
        opened = Scored(self)
        items = np.flatnonzero(~opened.held)
        order, share = Order([len(items)], None, seed), np.arange(rank, batch_size, world)
        while True:
            index_B = start * batch_size + share
            yield {**opened.batch(items[order.at(index_B)[1]]), "index": _tensor(index_B)}
            start += 1

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """Held-out batches of about so many tokens, in the order of their items."""
        opened = Scored(self)
        items = np.flatnonzero(opened.held)
        fitting = int((np.cumsum(opened.lengths[items].sum(1)) <= tokens).sum())
        for first in range(0, max(1, fitting), batch_size):
            here = items[first : min(first + batch_size, max(1, fitting))]
            yield {**opened.batch(here), "index": _tensor(here)}


class Scored:
    """Prepared pairs, opened: any item in constant time.

    Attributes:
        held: which items are held out [items].
        label: which single answers are good [items].
        prompt: number of each item's prompt [items].
        lengths: tokens of each side [items, 2].
        reference: the model's log-probability of each side [items, 2], where it has been computed.
    """

    def __init__(self, data: Pairs) -> None:
        self.folder, self.single = Path(data.folder), data.single
        try:
            with np.load(self.folder / ARRAYS) as arrays:
                self.tokens, self.ends, self.starts = arrays["tokens"], arrays["ends"], arrays["starts"]
                self.held, self.label, self.prompt = arrays["held"], arrays["label"], arrays["prompt"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{self.folder} holds no pairs", str(error), "give the same command again") from error
        self.lengths = np.diff(self.ends.reshape(-1), prepend=0).reshape(-1, 2)
        path = self.folder / REFERENCE
        self.reference = np.load(path)["logp"] if path.is_file() else None

    def row(self, item: int, side: int) -> tuple[NDArray[np.int64], int]:
        """The tokens of a side, and where its answer begins."""
        end = self.ends[item, side]
        return self.tokens[end - self.lengths[item, side] : end].astype(np.int64), int(self.starts[item, side])

    def batch(self, items: NDArray[np.int64]) -> Batch:
        """The items of these numbers [B], padded behind their ends."""
        length = -(-int(self.lengths[items].max()) // ROUND) * ROUND + 1
        tokens = np.zeros((len(items), 2, length), dtype=np.int64)
        mask = np.zeros(tokens.shape, dtype=bool)
        for place, item in enumerate(items.tolist()):
            for side in (0, 1):
                ids, start = self.row(item, side)
                tokens[place, side, : len(ids)] = ids
                mask[place, side, start : len(ids)] = True
        made = {"tokens": tokens, "mask": mask, "label": self.label[items]}
        if self.reference is not None:
            made["reference"] = self.reference[items]
        return {name: _tensor(array) for name, array in made.items()}

    def couples(self, held: bool) -> NDArray[np.int64]:
        """Numbers of a better and a worse answer [couples, 2], item by item and side by side, of one of the parts.

        Of single answers: all good and bad ones of the same prompt; where there are none, all good and bad ones.
        """
        items = np.flatnonzero(self.held == held)
        if not self.single:
            return 2 * items[:, None] + np.arange(2)
        good, bad = (items[self.label[items] == wanted] for wanted in (True, False))
        both = np.stack(np.meshgrid(good, bad, indexing="ij"), -1).reshape(-1, 2)
        same = both[self.prompt[both[:, 0]] == self.prompt[both[:, 1]]]
        return 2 * (same if len(same) else both)

    def scores(self, model: Scores, items: NDArray[np.int64], watch: Watch | None = None) -> NDArray[np.float32]:
        """What the model makes of both sides of items [n]: summed log-probabilities (or rewards) [n, 2]."""
        found = np.zeros((len(items), 2), dtype=np.float32)
        order, done = np.argsort(-self.lengths[items].max(1), kind="stable"), 0
        while done < len(order):
            count = max(1, SCORED_TOKENS // (2 * int(self.lengths[items[order[done]]].max())))
            here = order[done : done + count]
            batch = {
                name: t.flatten(0, 1).to(device_of(model))
                for name, t in self.batch(items[here]).items()
                if name in ("tokens", "mask")
            }
            with torch.inference_mode():
                found[here] = model.score(batch).float().sum(-1).view(-1, 2).cpu().numpy()
            done += len(here)
            if watch is not None:
                watch({"kind": "score", "done": done, "total": len(order)})
        return found

    def write(self, run: Run, watch: Watch | None) -> None:
        """Compute the reference, unless it is there.

        Raises:
            ConfigError: the model cannot score.
        """
        if self.reference is not None:
            return
        place = machine.choose()
        model: Any = load(run).to(place)
        one = {name: tensor[:1, 0].to(place) for name, tensor in self.batch(np.arange(1)).items() if tensor.ndim > 1}
        if not isinstance(model, Scores) or model.score(one).shape[-1] < 2:
            why = "it gives no log-probability of each token"
            raise ConfigError(f"{run.name} cannot score an answer", why, "name a language model")
        if watch is not None:
            watch({"kind": "phase", "phase": "reference", "detail": "log-probabilities before training"})
        with machine.autocast(place, "bf16" if machine.bf16_is_faster(place, SCORED_TOKENS, 512).yes else "fp32"):
            found = self.scores(model, np.arange(len(self.held)), watch)
        self.reference = found
        durable.replace(self.folder / REFERENCE, _saved(lambda file: np.savez(file, logp=found)))


@dataclass
class _Item:
    """A row as tokens: key of its prompt, ids of both sides and where their answers begin, label, ledger, bytes."""

    prompt: str
    ids: list[list[int]]
    starts: list[int]
    good: bool
    entry: Entry
    size: int


class _Writing:
    """Pairs while they are written."""

    def __init__(self, data: Pairs, run: Run, folder: Path, files: Sequence[Found], watch: Watch | None) -> None:
        self.data, self.run_, self.folder, self.files, self.watch = data, run, folder, files, watch
        path = run.path / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"{run.name} has no tokenizer", "it is no model of text", "name a language model")
        self.tokenizer: Tokenizer = read_tokenizer(path)
        self.chat, self.cut = Chat.of(run.path), 0
        self.dropped: list[Dropped] = []
        self.items: dict[tuple[str, ...], _Item] = {}

    def run(self, request: str) -> None:
        source = Path(self.data.source)
        finder = LicenceFinder(source if source.is_dir() else source.parent, self.data.licence)
        for found in self.files:
            if not found.path.name.removesuffix(".gz").removesuffix(".zst").endswith(SUFFIXES):
                self.dropped.append(Dropped(found.shown, "", "no table"))
                continue
            held = finder.settle(Document("", found.shown), found.path)
            with losses(found.shown) as lost, found.path.open("rb") as file:
                for name, rows in tables_of(file, found.shown, found.size):
                    for row in rows:
                        self._take(row, name, Entry("", name, held.licence, held.evidence))
            self.dropped += lost
        self._manifest(request, source, self._arrays([*self._sound()]))

    def _take(self, row: Any, name: str, entry: Entry) -> None:
        """One row, or why it is left out."""
        if isinstance(row, Dropped):
            self.dropped.append(row)
            return
        number, value = row
        try:
            found = preference(value if isinstance(value, dict) else {})
            if found.rejected is None and not self.data.single:
                raise UnreadableError("a single answer, from which `--by kto` learns")
            if found.chosen == found.rejected:
                raise UnreadableError("equal sides")
            answers = [answer for answer in (found.chosen, found.rejected) if answer is not None]
            spelled = [self._spelled(found.prompt, answer) for answer in answers]
            if len(spelled) == 2 and spelled[0][0] == spelled[1][0]:
                raise UnreadableError("equal sides, once they are cut to the context")
        except UnreadableError as error:
            self.dropped.append(Dropped(name, f"line {number}", error.reason, error.detail))
            return
        except (ConfigError, DataError) as error:
            self.dropped.append(
                Dropped(name, f"line {number}", "refused by the chat template", error.why or error.what)
            )
            return
        asked = json.dumps(found.prompt, sort_keys=True)
        prompt = hashlib.sha256(asked.encode()).hexdigest()
        size = len(asked) + sum(map(len, answers))
        groups = [[each] for each in range(len(answers))] if self.data.single else [[0, 1]]
        for each in groups:
            key = (asked, *(answers[side] for side in each))
            if key in self.items:
                self.dropped.append(Dropped(name, f"line {number}", "duplicate"))
                continue
            ids, starts = [spelled[side][0] for side in each], [spelled[side][1] for side in each]
            good = found.good if found.rejected is None else each == [0]
            self.items[key] = _Item(prompt, ids, starts, good, entry, size)

    def _spelled(self, prompt: Messages, answer: str) -> tuple[list[int], int]:
        """The tokens of a prompt and an answer, in at most the context, and where the answer begins."""
        most = self.data.context_length + 1
        ids, learn = self.chat.tokens([*prompt, {"role": "assistant", "content": answer}], self.tokenizer, answer=False)
        end = len(learn) - learn[::-1].index(True) if True in learn else 0
        start = end - next((place for place, said in enumerate(learn[:end][::-1]) if not said), end)
        if not 0 < start < min(end, most):
            raise UnreadableError("a prompt longer than the context" if start >= most else "no answer to be learned")
        self.cut += end > most
        return ids[: min(end, most)], start

    def _sound(self) -> Iterator[_Item]:
        """The items without those that another row contradicts.

        Raises:
            DataError: nothing is left that could teach.
        """
        found = []
        for key, item in self.items.items():
            if not self.data.single and (key[0], key[2], key[1]) in self.items:
                self.dropped.append(Dropped(item.entry.source, "", "a row that another one contradicts"))
            else:
                found.append(item)
        counted = Counter(item.reason for item in self.dropped).most_common(5)
        why = ", ".join(f"{count:,} x {reason}" for reason, count in counted) or "there are no rows"
        if len({item.prompt for item in found}) < 2:
            told = any(item.reason == CONVERSATION for item in self.dropped)
            raise DataError(
                f"there is nothing to prefer in {self.data.source}",
                why if not found else "all rows have the same prompt, so that none can be held out",
                f"conversations without a second side are learned by `nomoat tune {self.run_.name} {self.data.source}`"
                if told
                else "a row has a prompt, a chosen and a rejected answer; or a prompt, a completion and a label",
            )
        if self.data.single and len({item.good for item in found}) < 2:
            word = "good" if found[0].good else "bad"
            raise DataError(
                f"all answers in {self.data.source} are {word}", "there is nothing to tell apart", "add others"
            )
        return iter(found)

    def _arrays(self, items: list[_Item]) -> tuple[list[_Item], NDArray[np.bool_]]:
        """Write the tokens; returns the items and which are held out."""
        items.sort(key=lambda item: (item.prompt, item.ids))  # by contents: the order of the rows changes nothing
        prompts = sorted({item.prompt for item in items})
        last = prompts[max(1, len(prompts) // HELD_OUT) - 1]
        held = np.array([item.prompt <= last for item in items])
        if self.data.single:  # the prompt with another one's answer, from the same part
            answers = [item.ids[0][item.starts[0] :] for item in items]
            for part in (np.flatnonzero(held), np.flatnonzero(~held)):
                for place, other in zip(part, np.roll(part, -1 - len(part) // 2), strict=True):
                    item = items[place]
                    item.starts.append(item.starts[0])
                    item.ids.append((item.ids[0][: item.starts[0]] + answers[other])[: self.data.context_length + 1])
        sides = [ids for item in items for ids in item.ids]
        arrays: dict[str, Any] = {
            "tokens": np.concatenate([np.array(ids, dtype=np.uint32) for ids in sides]),
            "ends": np.cumsum([len(ids) for ids in sides]).reshape(-1, 2),
            "starts": np.array([item.starts for item in items]),
            "held": held,
            "label": np.array([item.good for item in items]),
            "prompt": np.searchsorted(prompts, [item.prompt for item in items]),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / REFERENCE).unlink(missing_ok=True)
        durable.replace(self.folder / ARRAYS, _saved(lambda file: np.savez(file, **arrays)))
        return items, held

    def _manifest(self, request: str, source: Path, made: tuple[list[_Item], NDArray[np.bool_]]) -> None:
        items, held = made
        for name in ("tokenizer.json", "chat.json"):
            if (self.run_.path / name).is_file():
                shutil.copyfile(self.run_.path / name, self.folder / name)
        lines = [(item.entry, sum(map(len, item.ids)), item.size) for item in items]
        splits = {
            name: {
                "documents": int((held == wanted).sum()),
                "tokens": sum(line[1] for line, one in zip(lines, held, strict=True) if one == wanted),
                "bytes": sum(line[2] for line, one in zip(lines, held, strict=True) if one == wanted),
            }
            for name, wanted in (("train", False), ("heldout", True))
        }
        dropped = [asdict(item) for item in self.dropped]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in dropped)
        durable.replace(self.folder / DROPPED, text.encode())
        manifest = Manifest(
            id=digest(self.folder / ARRAYS),
            source=str(source.absolute()),
            title=source.name,
            request=request,
            settings={"context_length": self.data.context_length, "cut": self.cut, "single": self.data.single},
            files=[
                {"path": f.shown, "size": f.size, "mtime_ns": f.mtime_ns, "sha256": digest(f.path)} for f in self.files
            ],
            tokenizer=self.tokenizer.hash,
            splits=splits,
            shards=[
                {"name": ARRAYS, "bytes": (self.folder / ARRAYS).stat().st_size, "sha256": digest(self.folder / ARRAYS)}
            ],
            dropped=dict(Counter(item["reason"] for item in dropped)),
            near_duplicates=0,
            encodings={},
            columns={},
            ledger=asdict(summarise(line for line, one in zip(lines, held, strict=True) if not one)),
            held_out=[],
        )
        durable.replace(self.folder / NAME, manifest.to_json())


def _saved(save: Callable[[Any], None]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def _tensor(array: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(array))
