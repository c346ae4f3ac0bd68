"""Moves that ask for facts: by name, by pronoun, in reverse, as yes or no, two at once."""

import re
from random import Random

from training.corpus.book import Book, FactKind
from training.corpus.talk import Talk, Turn
from training.subject import Subject, joined, possessive

_LONG = {"who", "note", "origin"}
_TOLD = re.compile(
    r"\b(hair|haircut|scar|scars|scarred|eyes?|tattoos?|whisky|alcohol|heart|cancer|blind|blinded|millionaire|Muslim"
    r"|language|ramen|pancakes|cookies|boar|spinach|clarinet|Beetle|motorcycle)\b"
)
"""Words of the knowledge that answer, of a few subjects, what it holds of nobody else."""
_JOINTS = (
    ", ",
    ", ",
    ". ",
    ". ",
    " and ",
    ", so ",
    ": ",
    "? ",
    " - ",
    "; ",
    ", but ",
    " so ",
    " ",
    "... ",
    ". so ",
    ", now ",
)


def named_question(talk: Talk) -> Turn | None:
    """A question that names its subject."""
    subject = talk.book.pick(talk.rng)
    fact = _some_fact(talk, subject)
    return _asked(talk, subject, fact, _wording(talk, subject, fact))


def pronoun_question(talk: Talk) -> Turn | None:
    """A question about the last subject that only says him, her, them or it."""
    subject = talk.subject
    if subject is None:
        return None
    facts = [fact for fact in talk.book.known(subject) if fact.asks and not fact.reverse and fact is not talk.fact]
    if not facts:
        return None
    fact = talk.rng.choice(facts)
    if fact.nouns and talk.rng.random() < 0.15:
        noun = talk.write([fact.nouns])
        text = talk.write(talk.book.frames["fragments"], noun=noun)
        return _asked(talk, subject, fact, text)
    text = _plain(talk, fact, _pronouns(talk.book, subject))
    return _asked(talk, subject, fact, framed(text, talk))


def question_of_another(talk: Talk) -> Turn | None:
    """A question by name for another subject of the kind, one that is called by other pronouns than the last.

    It leaves both in the talk, so that the next turn can go back to the first by pronoun.
    """
    first = talk.subject
    if first is None:
        return None
    others = [other for other in _sample(talk, 12) if other.kind == first.kind and other.pronouns != first.pronouns]
    if not others:
        return None
    shared = {fact.key for fact in talk.book.known(first)}
    facts = [fact for fact in talk.book.known(others[0]) if fact.asks and not fact.reverse and fact.key in shared]
    if not facts:
        return None
    fact = talk.rng.choice(facts)
    return _asked(talk, others[0], fact, _wording(talk, others[0], fact))


def same_question(talk: Talk) -> Turn | None:
    """The last question for another subject: "and Robin?"."""
    if talk.fact is None or talk.subject is None or talk.fact.reverse:
        return None
    others = [other for other in _sample(talk, 12) if _answers_too(talk, other)]
    if not others:
        return None
    fact = next(fact for fact in talk.book.known(others[0]) if fact.key == talk.fact.key)
    text = talk.write(talk.book.frames["elliptic"], **name_slots(others[0], talk.rng))
    return _asked(talk, others[0], fact, text)


def same_question_by_pronoun(talk: Talk) -> Turn | None:
    """The last question for somebody named earlier: "and her?"."""
    if talk.fact is None or talk.subject is None:
        return None
    others = [other for other in talk.by_pronoun.values() if other.pronouns != talk.subject.pronouns]
    others = [other for other in others if _answers_too(talk, other)]
    if not others:
        return None
    other = talk.rng.choice(others)
    text = talk.write(talk.book.frames["elliptic_pronoun"], him=other.pronouns[1])
    return _asked(talk, other, talk.fact, text)


def right_or_wrong(talk: Talk) -> Turn | None:
    """A yes-or-no question, as likely wrong as right, or a claim to be confirmed."""
    subject = talk.subject if talk.subject and talk.rng.random() < 0.3 else talk.book.pick(talk.rng)
    facts = [fact for fact in talk.book.known(subject) if fact.checks]
    if not facts:
        return None
    fact, rng = talk.rng.choice(facts), talk.rng
    own = _values(subject, fact.key)
    is_right = rng.random() < 0.5
    claim = rng.choice(own) if is_right else rng.choice(talk.book.pools[subject.kind, fact.key])
    if not is_right and (claim in own or claim in joined(own)):
        return None
    values = talk.book.slots_of[subject.name]
    by_pronoun = subject is talk.subject and rng.random() < 0.5
    names = _pronouns(talk.book, subject) if by_pronoun else values | name_slots(subject, rng)
    text = talk.write(fact.checks, **{**names, "x": claim})
    if rng.random() < 0.25:
        text = _claim(talk, fact, names, claim)
    talk.turn_to(subject, fact)
    return framed(text, talk), f"{'Yes' if is_right else 'No'}. {fact.answer(values)}"


def _claim(talk: Talk, fact: FactKind, values: dict[str, str], claim: str) -> str:
    """A sentence such as "is it true that Batman's home is Metropolis"."""
    own = {**values, fact.key: claim, "sole_author": claim}
    sentence = (fact.answer(own) or "").rstrip(".")
    return talk.write(talk.book.frames["true_that"], c=sentence)


def two_questions(talk: Talk) -> Turn | None:
    """Two facts about one subject, asked for at once."""
    subject = talk.book.pick(talk.rng)
    facts = [fact for fact in talk.book.known(subject) if fact.asks and not fact.reverse and fact.key not in _LONG]
    if len(facts) < 2:
        return None
    first, second = talk.rng.sample(facts, 2)
    values = talk.book.slots_of[subject.name]
    if first.answer(values) == second.answer(values):
        return None
    named = _plain(talk, first, values | name_slots(subject, talk.rng))
    unnamed = _plain(talk, second, _pronouns(talk.book, subject))
    talk.turn_to(subject, second)
    text = talk.write(talk.book.frames["both"], a=named, b=unnamed)
    return text, f"{first.answer(values)} {second.answer(values)}"


def missing_fact(talk: Talk) -> Turn | None:
    """A question that fits the subject but that the knowledge cannot answer."""
    subject = talk.book.pick(talk.rng)
    facts = [fact for fact in talk.book.missing(subject) if fact.asks]
    if not facts:
        return None
    fact = talk.rng.choice(facts)
    return _lacking(talk, subject, _wording(talk, subject, fact))


def pronoun_question_in_vain(talk: Talk) -> Turn | None:
    """A question about the last subject, by pronoun, that the knowledge cannot answer."""
    if talk.subject is None:
        return None
    facts = [fact for fact in talk.book.missing(talk.subject) if fact.asks]
    if not facts:
        return None
    text = _plain(talk, talk.rng.choice(facts), _pronouns(talk.book, talk.subject))
    return _lacking(talk, talk.subject, framed(text, talk))


def same_question_in_vain(talk: Talk) -> Turn | None:
    """The last question for another subject of which the knowledge lacks the answer."""
    fact, subject = talk.fact, talk.subject
    if fact is None or subject is None or fact.reverse:
        return None
    lacking = [other for other in _sample(talk, 12) if other.kind == subject.kind and _lacks(talk.book, other, fact)]
    if not lacking:
        return None
    text = talk.write(talk.book.frames["elliptic"], **name_slots(lacking[0], talk.rng))
    return _lacking(talk, lacking[0], text)


def beyond(talk: Talk) -> Turn | None:
    """A question about a subject, by name or pronoun, for something that the knowledge holds of nobody."""
    by_pronoun = talk.subject is not None and talk.rng.random() < 0.6
    subject = talk.subject if talk.subject and by_pronoun else talk.book.pick(talk.rng)
    told = " ".join(text for texts in subject.fields.values() for text in texts)
    if subject.kind not in talk.book.beyond or _TOLD.search(told):
        return None
    values = talk.book.slots_of[subject.name] | name_slots(subject, talk.rng)
    names = _pronouns(talk.book, subject) if by_pronoun else values
    text = talk.write(talk.book.beyond[subject.kind]["asks"], **names)
    return _lacking(talk, subject, framed(text, talk))


def _lacks(book: Book, subject: Subject, fact: FactKind) -> bool:
    return any(missing.key == fact.key for missing in book.missing(subject))


def _lacking(talk: Talk, subject: Subject, text: str) -> Turn:
    """The text, answered with not knowing that about the subject."""
    talk.turn_to(subject, None)
    return text, talk.book.frames["lack_reply"].format_map(talk.book.slots_of[subject.name])


def more(talk: Talk) -> Turn | None:
    """ "Tell me more": the next fact about the subject that has not been told."""
    if talk.subject is None or talk.round:
        return None
    values = talk.book.slots_of[talk.subject.name]
    slots = {"him": values["him"], "o": values["o"]}
    text = talk.write(talk.book.frames["more"], **slots)
    talk.fact = None
    return text, _next_fact(talk, talk.subject) or talk.book.frames["more_reply_none"].format_map(values)


def _next_fact(talk: Talk, subject: Subject) -> str | None:
    """The answer of the first fact, notes before the rest, of which nothing has been said yet."""
    skipped = {"who", "side", "role", "publisher", "genre"}
    facts = [fact for fact in talk.book.known(subject) if not fact.reverse and fact.key not in skipped]
    facts.sort(key=lambda fact: fact.key != "note")
    values = talk.book.slots_of[subject.name]
    for fact in facts:
        answer = fact.answer(values)
        if answer and values.get(fact.key, answer) not in talk.said and answer not in talk.said:
            return answer
    return None


def _asked(talk: Talk, subject: Subject, fact: FactKind, text: str) -> Turn:
    talk.turn_to(subject, fact)
    answer = fact.answer(talk.book.slots_of[subject.name])
    assert answer is not None
    return text, answer


def _some_fact(talk: Talk, subject: Subject) -> FactKind:
    """A fact of the subject that can be asked for, the plain "who is" more often than others."""
    facts = [fact for fact in talk.book.known(subject) if fact.asks]
    if talk.rng.random() < 0.16:
        return facts[0]
    return talk.rng.choice(facts)


def _wording(talk: Talk, subject: Subject, fact: FactKind) -> str:
    """The question for a fact in one of its wordings, with what people put around it."""
    rng = talk.rng
    values = talk.book.slots_of[subject.name] | name_slots(subject, rng, fact)
    means_last_question = fact.key == "who" and talk.fact is not None
    draw = rng.random()
    if fact.bits and not means_last_question and draw < 0.28:
        return talk.write(fact.bits, **values)
    if not fact.reverse and draw < 0.42:
        return _introduced(talk, subject, fact, values)
    return framed(_plain(talk, fact, values), talk)


def _introduced(talk: Talk, subject: Subject, fact: FactKind, values: dict[str, str]) -> str:
    """The subject brought up first, then asked about by pronoun: "my son loves Thor, who created him"."""
    mention = talk.write(talk.book.frames["mentions"], **values)
    question = _plain(talk, fact, _pronouns(talk.book, subject))
    return f"{mention}{talk.rng.choice(_JOINTS)}{question}"


def _plain(talk: Talk, fact: FactKind, values: dict[str, str]) -> str:
    """A question in one of the fact's own wordings, or built of a noun for the fact."""
    rng = talk.rng
    if not fact.nouns or rng.random() < 0.55:
        return talk.write(fact.asks, **values)
    noun = talk.write([fact.nouns])
    return talk.write(talk.book.frames["noun_frames"], **{**values, "noun": noun})


def question_about(talk: Talk, name: str) -> str:
    """A question that fits a character or a work, asked about any name."""
    pronouns = talk.rng.choice((("he", "him", "his"), ("she", "her", "her"), ("it", "it", "its")))
    values = dict(zip(("he", "him", "his"), pronouns, strict=True))
    values |= {"n": name, "o": name, "s": possessive(name), "t": name, "is": "is", "was": "was", "do": "does"}
    facts = [fact for fact in talk.book.kinds[talk.rng.choice(("character", "work"))] if fact.asks and not fact.reverse]
    fact = talk.rng.choice(facts)
    return talk.write(fact.bits, **values) if talk.rng.random() < 0.2 else _plain(talk, fact, values)


def framed(text: str, talk: Talk) -> str:
    """The text with an opener and a tail, which are often nothing."""
    draw = talk.rng.random()
    if draw < 0.45:
        return text
    if draw < 0.55:
        return talk.rng.choice(talk.book.frames["leads"]) + text
    return f"{talk.rng.choice(talk.book.frames['openers'])}{text}{talk.rng.choice(talk.book.frames['tails'])}"


def name_slots(subject: Subject, rng: Random, fact: FactKind | None = None) -> dict[str, str]:
    """The slots that name a subject, by its name or another that people know it by."""
    name, draw = subject.spoken, rng.random()
    if draw < 0.25 and subject.aliases:
        name = rng.choice(subject.aliases)
    elif draw < 0.3 and "real_name" in subject.fields and fact and fact.key not in ("real_name", "who"):
        name = subject.fields["real_name"][0]
    elif draw < 0.45:
        name = subject.name
    return {"n": name, "o": name, "s": possessive(name), "t": name if draw < 0.25 else subject.name}


def _pronouns(book: Book, subject: Subject) -> dict[str, str]:
    he, him, his = subject.pronouns
    return {**book.slots_of[subject.name], "n": he, "o": him, "s": his, "t": him}


def _sample(talk: Talk, count: int) -> list[Subject]:
    return talk.rng.choices(talk.book.subjects, talk.book.weights, k=count)


def _answers_too(talk: Talk, other: Subject) -> bool:
    """Whether the last question can be asked of another subject of the same kind."""
    if talk.subject is None or talk.fact is None or other.kind != talk.subject.kind or other is talk.subject:
        return False
    return any(fact.key == talk.fact.key for fact in talk.book.known(other))


def _values(subject: Subject, key: str) -> list[str]:
    return subject.fields["writers"] if key == "authors" else subject.fields[key]
