"""Judge the exported model: a table of its groups and two hundred scripted conversations."""

import json
import re
import tomllib
from collections import Counter
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from training.corpus.book import Book
from training.corpus.writer import conversations
from training.evaluation.case import GROUPS, Case
from training.evaluation.fact_cases import FactCases
from training.evaluation.leaks import leaks
from training.evaluation.talk_cases import TalkCases
from training.paths import HELD_OUT, PHRASINGS
from training.speaker import Message, Reply, Speaker

_SCRIPTS, _LONGEST = 200, 80
_SAMPLE = 60_000


def all_cases(book: Book, seed: int) -> list[Case]:
    """Every case, the same for the same seed and knowledge."""
    facts = FactCases(book, seed)
    drawn = [
        *facts.questions(250, "asks", "facts"),
        *facts.questions(105, "bits", "understanding"),
        *facts.misspelt(80),
        *facts.lacking(60),
    ]
    unknown = TalkCases(book, seed + 2)
    talks = [*TalkCases(book, seed).cases(17), *(unknown.unknown() for _ in range(17))]
    return [*dict.fromkeys([*drawn, *talks, *_lines()])]


def _lines() -> list[Case]:
    sets = tomllib.loads((HELD_OUT / "lines.toml").read_text())["set"]
    return [Case(s["group"], (line,), tuple(s["want"]), tuple(s["deny"])) for s in sets for line in s["lines"]]


def evaluate(book: Book, folder: Path, report: Path, seed: int) -> None:
    """Print the table, write it and every failure to the report.

    Raises ValueError when a held-out question occurs in the corpus.
    """
    cases = all_cases(book, seed)
    check_held_out(book, cases, seed)
    speaker = Speaker(folder)
    persona = book.systems["default"]
    talks = answered(speaker, [case.turns for case in cases], persona)
    judged = [(case, messages[-1]["content"]) for case, (messages, _) in zip(cases, talks, strict=True)]
    failures = [(case, reply) for case, reply in judged if not case.is_met_by(reply)]
    table = {group: score(group, cases, [case for case, _ in failures]) for group in GROUPS}
    faults = script_faults(speaker, book, seed)
    listed = [{**asdict(case), "rivals": case.rivals_in(reply), "reply": reply} for case, reply in failures]
    content = {"table": table, "scripts": dict(faults), "failures": listed}
    report.write_text(json.dumps(content, indent=1, ensure_ascii=False))
    print(markdown(table), f"\n\n{_SCRIPTS} conversations: {dict(faults) or 'no fault'}")


def score(group: str, cases: list[Case], failed: list[Case]) -> tuple[int, int]:
    """How many cases of a group were met, and how many there are."""
    count = sum(case.group == group for case in cases)
    return count - sum(case.group == group for case in failed), count


def markdown(table: dict[str, tuple[int, int]]) -> str:
    """The table as the model card shows it."""
    rows = [f"| {group} | {count} | {met / count:.1%} |" for group, (met, count) in table.items()]
    met, count = (sum(column) for column in zip(*table.values(), strict=True))
    head = ["| group | cases | right |", "| --- | ---: | ---: |"]
    return "\n".join([*head, *rows, f"| all | {count} | {met / count:.1%} |"])


def check_held_out(book: Book, cases: list[Case], seed: int) -> None:
    """Raise ValueError when the corpus's templates write a held-out wording, or a big sample of it holds a case."""
    if written := leaks(book, PHRASINGS):
        raise ValueError(f"held-out wordings that templates write: {written}")
    talks = islice(conversations(book, seed), _SAMPLE)
    seen = {_bare(message["content"]) for talk in talks for message in talk if message["role"] == "user"}
    leaked = {turn for case in cases for turn in case.turns if _bare(turn) in seen}
    if leaked:
        raise ValueError(f"held-out questions in the corpus: {sorted(leaked)}")


def _bare(text: str) -> str:
    """Letters and digits only, or the text itself where it has none."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip() or text


def answered(speaker: Speaker, scripts: list[tuple[str, ...]], persona: str) -> list[tuple[list[Message], list[Reply]]]:
    """Hold every conversation, turn by turn, all at once."""
    talks: list[tuple[list[Message], list[Reply]]] = [([{"role": "system", "content": persona}], []) for _ in scripts]
    for turn in range(max(map(len, scripts))):
        active = [(talk, script) for talk, script in zip(talks, scripts, strict=True) if turn < len(script)]
        for (messages, _), script in active:
            messages.append({"role": "user", "content": script[turn]})
        replies = speaker.replies([messages for (messages, _), _ in active])
        for ((messages, kept), _), reply in zip(active, replies, strict=True):
            messages.append({"role": "assistant", "content": reply.text})
            kept.append(reply)
    return talks


def script_faults(speaker: Speaker, book: Book, seed: int) -> Counter[str]:
    """What goes wrong in the scripted conversations: empty, endless, too long or looping replies."""
    source = TalkCases(book, seed + 7)
    talks = answered(speaker, [source.script() for _ in range(_SCRIPTS)], book.systems["default"])
    return Counter(fault for _, replies in talks for reply in replies for fault in reply_faults(reply))


def reply_faults(reply: Reply) -> list[str]:
    """The faults of one reply; a loop is four words said twice in a row."""
    faults = {
        "empty": not reply.text.strip(),
        "no end of turn": not reply.has_ended,
        "too long": reply.tokens > _LONGEST,
        "loop": bool(re.search(r"\b(\w+\W+\w+\W+\w+\W+\w+)\W+\1\b", reply.text)),
    }
    return [name for name, is_so in faults.items() if is_so]
