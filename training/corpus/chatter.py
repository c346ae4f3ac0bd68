"""Moves that are not about facts: small talk, declines, memory, repeats, jokes, unknown names."""

from typing import Any

from training.corpus import invent
from training.corpus.grammar import slots, write
from training.corpus.questions import framed, question_about
from training.corpus.talk import Talk, Turn
from training.subject import possessive

_COMMON_ROUNDS = {"joke", "recommendation"}


def small_talk(talk: Talk) -> Turn:
    """Greetings, thanks, questions about the assistant, gibberish, attempts to overturn it."""
    weights = [exchange.get("weight", 1) for exchange in talk.book.smalltalk]
    exchange = talk.rng.choices(talk.book.smalltalk, weights)[0]
    if exchange["topic"] not in ("thanks", "praise", "ok"):
        talk.leave()
    return _exchange(talk, exchange)


def decline(talk: Talk) -> Turn:
    """A request for what the assistant does not do."""
    text, reply = _exchange(talk, talk.rng.choice(talk.book.declines))
    talk.leave()
    return framed(text, talk), reply


def opening(talk: Talk) -> Turn:
    """A greeting, as the first turn of a talk."""
    return _exchange(talk, talk.book.smalltalk[0])


def _exchange(talk: Talk, exchange: dict[str, Any]) -> Turn:
    template = talk.rng.choice(exchange["asks"])
    text = write(template, talk.rng, _words(talk, template))
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
    values = {"name": invent.person(talk.book, talk.rng), "fav": talk.rng.choice(talk.book.heroes).spoken}
    if values["name"].lower() in (talk.me.lower(), "parley"):
        return None
    talk.leave()
    talk.user[key] = values["name"] if key == "name" else values["fav"]
    memory = talk.book.memory[key]
    return write(talk.rng.choice(memory["tell"]), talk.rng, values), memory["told"].format_map(values)


def recall(talk: Talk) -> Turn | None:
    """The user asks for what was told, or now and then for what never was."""
    if not talk.user and talk.rng.random() < 0.96:
        return None
    key = talk.rng.choice(list(talk.user) or ["name", "favourite"])
    memory = talk.book.memory[key]
    talk.leave()
    text = write(talk.rng.choice(memory["ask"]), talk.rng, {})
    if key not in talk.user:
        return text, memory["unknown"]
    slot = "name" if key == "name" else "fav"
    return text, memory["known"].format_map({slot: talk.user[key]})


def repeat(talk: Talk) -> Turn | None:
    """The user did not catch the last reply."""
    if not talk.turns:
        return None
    return write(talk.rng.choice(talk.book.frames["repeat"]), talk.rng, {}), talk.last_reply


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
    left = [reply for reply in topic["replies"] if reply not in talk.given]
    if not left:
        return None
    reply = talk.rng.choice(left)
    talk.given.add(reply)
    return write(talk.rng.choice(topic[wording]), talk.rng, {}), reply


def unknown_name(talk: Talk) -> Turn:
    """A question about a character that nobody knows."""
    name = invent.hero(talk.book, talk.rng)
    text = write(talk.rng.choice(talk.book.unknown["asks"]), talk.rng, {"u": name, "us": possessive(name)})
    if talk.rng.random() < 0.6:
        text = question_about(talk, name)
    talk.leave()
    return framed(text, talk), talk.book.frames["unknown_reply"][0]


def nobody(talk: Talk) -> Turn | None:
    """A pronoun before anybody has been named."""
    if talk.by_pronoun:
        return None
    he, him, his = talk.rng.choice((("he", "him", "his"), ("she", "her", "her"), ("they", "them", "their")))
    text = write(talk.rng.choice(talk.book.frames["nobody"]), talk.rng, {"he": he, "him": him, "his": his})
    return text, talk.book.frames["nobody_reply"]
