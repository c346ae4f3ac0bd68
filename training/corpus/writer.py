"""The corpus writer: an endless stream of conversations, the same for the same seed."""

from collections.abc import Iterator
from random import Random

from training.corpus import chatter, questions
from training.corpus.book import Book
from training.corpus.noise import noisy
from training.corpus.talk import Move, Talk, Turn

Message = dict[str, str]

# Weights of trying a move. Those that need something said before seldom fit and are tried the more often.
MOVES: dict[Move, float] = {
    questions.named_question: 32,
    questions.pronoun_question: 25,
    questions.pronoun_question_in_vain: 4,
    questions.question_of_another: 25,
    questions.same_question: 23,
    questions.same_question_in_vain: 5,
    chatter.same_question_of_unknown: 3,
    questions.same_question_by_pronoun: 60,
    chatter.back_by_pronoun: 8,
    questions.right_or_wrong: 6,
    questions.two_questions: 2,
    questions.missing_fact: 2,
    questions.beyond: 1.6,
    questions.more: 8,
    chatter.small_talk: 17,
    chatter.decline: 11,
    chatter.tell: 6,
    chatter.tell_both: 1.2,
    chatter.tell_and_ask: 2,
    chatter.correct_name: 5,
    chatter.recall: 27,
    chatter.repeat: 7,
    chatter.start_round: 3,
    chatter.next_round: 40,
    chatter.unknown_name: 5.5,
    chatter.nobody: 0.7,
}
LONG_TALKS = 0.02


def conversations(book: Book, seed: int) -> Iterator[list[Message]]:
    """Give conversations without end, each a list of messages with `role` and `content`."""
    rng = Random(seed)
    while True:
        yield _conversation(book, rng)


def _conversation(book: Book, rng: Random) -> list[Message]:
    system, me = _system_message(book, rng)
    talk = Talk(book, rng, me)
    count = rng.randint(18, 28) if rng.random() < LONG_TALKS else rng.choice((1, 2, 3, 4, 4, 5, 6, 7))
    if count > 1 and rng.random() < 0.08:
        talk.turns.append(_typed(chatter.opening(talk), rng))
    while len(talk.turns) < count:
        _take_turn(talk)
    messages = [{"role": "system", "content": system}] if system else []
    for text, reply in talk.turns:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]
    return messages


def _take_turn(talk: Talk) -> None:
    """Let moves try until one fits."""
    turn = None
    while turn is None:
        move = talk.rng.choices(list(MOVES), list(MOVES.values()))[0]
        turn = move(talk)
    talk.turns.append(_typed(turn, talk.rng, keep=talk.user.get("name", "")))


def _typed(turn: Turn, rng: Random, keep: str = "") -> Turn:
    return noisy(turn[0], rng, keep), turn[1]


def _system_message(book: Book, rng: Random) -> tuple[str, str]:
    """A system message, perhaps none, and the name that it gives the assistant."""
    draw, systems = rng.random(), book.systems
    if draw < 0.65:
        return systems["default"], "Parley"
    if draw < 0.8:
        return "", "Parley"
    if draw < 0.88:
        return rng.choice(systems["unnamed"]), "Parley"
    name = rng.choice(systems["names"])
    return rng.choice(systems["named"]).format(name=name), name
