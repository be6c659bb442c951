"""All verbs on one screen: what each is for, an example to type, and the function that runs it.

A new verb is one line in `VERBS` and one function. The screen holds 34 verbs: one line each, in which the example is
the name; the groups stand in the margin. Nothing is imported here, and a command's module only when it runs.
"""

from __future__ import annotations

from typing import NamedTuple

GROUPS = ("make", "use", "improve", "look", "share")
"""What one wants; the order of the screen. A group without verbs is not shown."""

SCREEN_LINES = 40
SCREEN_COLUMNS = 80


class Verb(NamedTuple):
    """One verb.

    Args:
        group: one of `GROUPS`.
        example: what to type after `nomoat`; its first word is the verb.
        line: what it is for, at most 41 characters.
        command: `module:function` of the click command.
        trains: whether it is worth starting again under the tuned allocator.
    """

    group: str
    example: str
    line: str
    command: str
    trains: bool = False

    @property
    def name(self) -> str:
        return self.example.split()[0]


VERBS = (
    Verb(
        "make", "make notes --budget 30m", "a model from a folder and a budget", "nomoat.cli.making:make", trains=True
    ),
    Verb(
        "make", "plan notes --budget 2h", "what make would do, expect and cost", "nomoat.cli.making:plan", trains=True
    ),
    Verb(
        "make",
        "train gpt-small batch_size=32",
        "train a recipe, settings changed",
        "nomoat.cli.making:train",
        trains=True,
    ),
    Verb(
        "make",
        "selfplay connect-four",
        "a player of a game, from nothing",
        "nomoat.cli.selfplaying:selfplay",
        trains=True,
    ),
    Verb("make", "compose PRIOR DECODER", "one run of several: DALL-E 2's design", "nomoat.cli.composing:compose"),
    Verb("make", "resume last", "go on with a stopped run", "nomoat.cli.making:resume", trains=True),
    Verb("use", "pull smollm2-135m-instruct", "fetch a published model, as a run", "nomoat.cli.pulling:pull"),
    Verb("use", 'generate last "def read("', "text from a model, as it is written", "nomoat.cli.using:generate"),
    Verb("use", 'draw last "red circle" --n 16', "pictures from a model, as PNGs", "nomoat.cli.drawing:draw"),
    Verb("use", "chat last", "talk with a model that was taught to", "nomoat.cli.chatting:chat", trains=True),
    Verb("use", 'think last "..." --budget 64', "an answer by search", "nomoat.cli.thinking:think"),
    Verb("use", "play last", "a game against a player; GTP, matches", "nomoat.cli.playing:play"),
    Verb("use", "serve last --port 8000", "models behind OpenAI's endpoints", "nomoat.cli.serving:serve", trains=True),
    Verb("improve", "tune last notes", "a model taught by your talks or texts", "nomoat.cli.tuning:tune", trains=True),
    Verb(
        "improve",
        "prefer last pairs.jsonl",
        "taught by better and worse answers",
        "nomoat.cli.preferring:prefer",
        trains=True,
    ),
    Verb(
        "improve",
        "control last mask",
        "pictures led by masks or outlines",
        "nomoat.cli.controlling:control",
        trains=True,
    ),
    Verb(
        "improve",
        "improve last countdown:4",
        "taught by its own right answers",
        "nomoat.cli.thinking:improve",
        trains=True,
    ),
    Verb(
        "improve", "quantize last --bits 8", "smaller, faster; what it costs beside it", "nomoat.cli.sharing:quantize"
    ),
    Verb(
        "improve",
        "distil last 15M prompts.txt",
        "a small model taught by a large one",
        "nomoat.cli.distilling:distil",
        trains=True,
    ),
    Verb("improve", "synth self-instruct count=500", "data that a teacher writes", "nomoat.cli.synthesising:synth"),
    Verb("look", "runs", "all runs: state, figure, size", "nomoat.cli.looking:runs"),
    Verb("look", "evaluate last notes", "bits per byte, or a task's score", "nomoat.cli.looking:evaluate"),
    Verb("look", "surprise last draft.txt", "the oddest lines of a file, to a model", "nomoat.cli.looking:surprise"),
    Verb("look", "curve last countdown:5", "what more search buys, with controls", "nomoat.cli.thinking:curve"),
    Verb("look", "judge A B asked.txt --judge C", "which of two answers better", "nomoat.cli.judging:judge"),
    Verb("look", "arena A B asked.txt --judge C", "a ladder of several, extended later", "nomoat.cli.judging:arena"),
    Verb("look", "doctor", "what this machine has, and what ails it", "nomoat.cli.looking:doctor"),
    Verb("look", "licence last notes", "what binds a model or data, and why", "nomoat.cli.licensing:licence"),
    Verb("share", "import model.gguf", "a published model becomes a run", "nomoat.cli.sharing:import_"),
    Verb("share", "export last --to gguf", "a run for transformers, llama.cpp, ...", "nomoat.cli.sharing:export"),
)

HEAD = "nomoat: a folder and a budget go in, a model you own comes out."
FOOT = """Every command: --help, --json (one object a line); where it computes, --device.
RUN is a folder, a name, the beginning of one, or `last`."""


def find(name: str) -> Verb | None:
    """The verb called `name`, or None."""
    return next((verb for verb in VERBS if verb.name == name), None)


def screen(verbs: tuple[Verb, ...] = VERBS) -> str:
    """The help text: one line a verb, grouped by what one wants."""
    margin = max(len(group) for group in GROUPS) + 1
    lines = [HEAD, ""]
    for group in GROUPS:
        for number, verb in enumerate(verb for verb in verbs if verb.group == group):
            title = group if number == 0 else ""
            lines.append(f"{title:<{margin}}{verb.example:<30} {verb.line}")
    return "\n".join([*lines, "", *FOOT.splitlines()])
