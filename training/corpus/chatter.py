"""Moves that are not about facts: small talk, declines, memory, repeats, jokes, unknown names."""

import re
from typing import Any

from training.corpus import invent
from training.corpus.grammar import slots
from training.corpus.questions import framed, named_question, pronoun_question, question_about
from training.corpus.talk import Talk, Turn
from training.subject import possessive

_COMMON_ROUNDS = {"joke", "recommendation"}
_SLOT_OF = {"name": "name", "favourite": "fav"}
_GREETINGS = (
    "hi",
    "hello",
    "hey",
    "hi there",
    "hello there",
    "hey there",
    "good morning",
    "good evening",
    "hiya",
    "yo",
)
_AFTER_GREETING = ("! ", ", ", ". ", " ", "!! ", " {me}, ", " {me}! ")


def small_talk(talk: Talk) -> Turn:
    """Greetings, thanks, questions about the assistant, gibberish, attempts to overturn it."""
    exchange = _pick(talk, talk.book.smalltalk)
    if exchange["topic"] not in ("thanks", "praise", "ok"):
        talk.leave()
    return _exchange(talk, exchange)


def decline(talk: Talk) -> Turn:
    """A request for what the assistant does not do."""
    text, reply = _exchange(talk, _pick(talk, talk.book.declines))
    talk.leave()
    return framed(text, talk), reply


def opening(talk: Talk) -> Turn:
    """A greeting, as the first turn of a talk."""
    return _exchange(talk, talk.book.smalltalk[0])


def _pick(talk: Talk, exchanges: list[dict[str, Any]]) -> dict[str, Any]:
    """One of the exchanges by their weights."""
    return talk.rng.choices(exchanges, [exchange.get("weight", 1) for exchange in exchanges])[0]


def _exchange(talk: Talk, exchange: dict[str, Any]) -> Turn:
    template = talk.rng.choice(exchange["asks"])
    text = talk.write([template], **_words(talk, template))
    return text, talk.rng.choice(exchange["replies"]).replace("{me}", talk.me)


def _words(talk: Talk, template: str) -> dict[str, str]:
    """A word for each slot of the template."""
    words = {"me": talk.me}
    for slot in slots(template) - words.keys():
        words[slot] = _word(talk, slot)
    return words


def _word(talk: Talk, slot: str) -> str:
    if slot == "gibberish":
        return invent.gibberish(talk.rng)
    if slot == "foreign_words":
        words = talk.book.words[slot][talk.rng.choice(list(talk.book.words[slot]))]
        return " ".join(talk.rng.choices(words, k=talk.rng.randint(2, 7)))
    if slot in ("hero", "hero2"):
        return talk.rng.choice(talk.book.heroes).name
    return talk.rng.choice(talk.book.words[slot])


def tell(talk: Talk) -> Turn | None:
    """The user gives a name or a favourite hero."""
    key = talk.rng.choice(("name", "name", "favourite"))
    if key in talk.user and talk.rng.random() < 0.7:
        return None
    talk.leave()
    return _told(talk, key, [key])


def tell_both(talk: Talk) -> Turn | None:
    """The user gives a name and a favourite hero at once."""
    if talk.user:
        return None
    talk.leave()
    return _told(talk, "both", ["name", "favourite"])


def correct_name(talk: Talk) -> Turn | None:
    """ "No, it's Tom", after a reply that called the user by another name."""
    if talk.user.get("name", "\0") not in talk.last_reply:
        return None
    talk.leave()
    return _told(talk, "corrected", ["name"])


def tell_and_ask(talk: Talk) -> Turn | None:
    """The user gives a name and asks for a fact in the same message."""
    if "name" in talk.user:
        return None
    question = named_question(talk)
    if question is None:
        return None
    text, greeting = _told(talk, "with_question", ["name"], question[0])
    return text, f"{greeting} {question[1]}"


def _told(talk: Talk, memory: str, keys: list[str], question: str = "") -> Turn:
    """Something told of the user, which is remembered under the keys."""
    name = invent.person(talk.book, talk.rng)
    while name.lower() in (talk.me.lower(), "parley"):
        name = invent.person(talk.book, talk.rng)
    values = {"name": name, "fav": talk.rng.choice(talk.book.heroes).spoken}
    talk.user |= {key: values[_SLOT_OF[key]] for key in keys}
    table = talk.book.memory[memory]
    text = talk.write(table["tell"], **values, q=question, me=talk.me)
    if not talk.turns and talk.rng.random() < 0.35 and not text.lower().startswith(_GREETINGS):
        text = f"{talk.rng.choice(_GREETINGS)}{talk.rng.choice(_AFTER_GREETING).format(me=talk.me)}{text}"
    return text, table["told"].format_map(values)


def recall(talk: Talk) -> Turn | None:
    """The user asks for what was told, or now and then for what never was."""
    if not talk.user and talk.rng.random() < 0.96:
        return None
    draw = talk.rng.random()
    key = talk.rng.choice(list(talk.user if draw < 0.93 and talk.user else _SLOT_OF))
    if len(talk.user) == len(_SLOT_OF) and draw < 0.12:
        key = "both"
    memory = talk.book.memory[key]
    talk.leave()
    text = talk.write(memory["ask"])
    if key != "both" and key not in talk.user:
        return text, memory["unknown"]
    return text, memory["known"].format_map({_SLOT_OF[told]: value for told, value in talk.user.items()})


def repeat(talk: Talk) -> Turn | None:
    """The user did not catch the last reply."""
    if not talk.turns:
        return None
    return talk.write(talk.book.frames["repeat"]), talk.last_reply


def start_round(talk: Talk) -> Turn | None:
    """A joke or a recommendation is asked for."""
    talk.leave()
    topics = list(talk.book.rounds)
    talk.round = talk.rng.choices(topics, [4 if topic in _COMMON_ROUNDS else 1 for topic in topics])[0]
    return _round(talk, "asks")


def next_round(talk: Talk) -> Turn | None:
    """Another joke or recommendation."""
    return _round(talk, "again") if talk.round else None


def _round(talk: Talk, wording: str) -> Turn | None:
    topic = talk.book.rounds[talk.round]
    replies, given = topic["replies"], [reply for reply in talk.given if reply in topic["replies"]]
    # Always in the same order: a small model learns what follows what, but not which ones are left.
    at = replies.index(given[-1]) + 1 if given else talk.rng.randrange(len(replies))
    reply = replies[at % len(replies)]
    if reply in given:
        return None
    talk.given.append(reply)
    return talk.write(topic[wording]), reply


def unknown_name(talk: Talk) -> Turn:
    """A question about a character that nobody knows."""
    name = invent.hero(talk.book, talk.rng)
    text = talk.write(talk.book.unknown["asks"], u=name, us=possessive(name))
    if talk.rng.random() < 0.6:
        text = question_about(talk, name)
    talk.leave()
    return framed(text, talk), talk.book.frames["unknown_reply"][0]


def nobody(talk: Talk) -> Turn | None:
    """A pronoun before anybody has been named."""
    if talk.by_pronoun:
        return None
    he, him, his = talk.rng.choice((("he", "him", "his"), ("she", "her", "her"), ("they", "them", "their")))
    text = talk.write(talk.book.frames["nobody"], he=he, him=him, his=his)
    return text, talk.book.frames["nobody_reply"]


def back_by_pronoun(talk: Talk) -> Turn | None:
    """A whole question about somebody named earlier, who is called he, she or they."""
    others = [other for other in talk.by_pronoun.values() if other is not talk.subject]
    if not others:
        return None
    before, other = (talk.subject, talk.fact), talk.rng.choice(others)
    talk.subject, talk.fact = other, None
    turn = pronoun_question(talk)
    if turn is None or not set(other.pronouns) & set(re.findall(r"\w+", turn[0])):
        talk.subject, talk.fact = before
        return None
    return turn


def same_question_of_unknown(talk: Talk) -> Turn | None:
    """The last question for a name that nobody knows."""
    if talk.fact is None:
        return None
    name = invent.hero(talk.book, talk.rng)
    text = talk.write(talk.book.frames["elliptic"], n=name, o=name, s=possessive(name))
    talk.leave()
    return text, talk.book.frames["unknown_reply"][0]
