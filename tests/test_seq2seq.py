"""The encoder-decoder runner against `model.generate`, on tiny models of every family it serves."""

import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from parley.engine.model import ModelError, ModelFolder
from parley.engine.runner import Job, Placement, Sampling
from parley.engine.runners import seq2seq
from parley.engine.runners.seq2seq import int8
from parley.engine.runners.seq2seq.chain import Chain
from parley.engine.runners.seq2seq.cohort import Answer, Cohort
from parley.engine.runners.seq2seq.key_values import KeyValues
from parley.engine.runners.seq2seq.rules import Rules
from parley.engine.runners.seq2seq.runner import Seq2SeqRunner
from tests.models_seq2seq import (
    BLENDERBOT_GENERATION,
    BUILDERS,
    POSITIONS,
    VOCABULARY,
    build_bart,
    build_blenderbot,
    build_flan_t5,
    prompts,
)

FORCED = {"forced_eos_token_id": 2}
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("blenderbot", {}),  # its own: 10 beams, n-grams of both sides, a minimum length
    ("blenderbot", {"num_beams": 4, "max_length": 40, "early_stopping": False}),
    ("blenderbot-small", {"num_beams": 4, "max_length": 40, "encoder_no_repeat_ngram_size": 2, **FORCED}),
    ("blenderbot-small", {"max_length": 40, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}),
    (
        "bart",
        {"num_beams": 4, "max_length": 50, "min_length": 12, "length_penalty": 2.0, "early_stopping": True,
         "no_repeat_ngram_size": 3, "forced_bos_token_id": 0, **FORCED},
    ),
    (
        "bart",
        {"num_beams": 3, "max_length": 40, "length_penalty": -0.5, "early_stopping": "never",
         "bad_words_ids": [[5], [7, 9], [2]], "repetition_penalty": 1.2, "encoder_repetition_penalty": 1.4},
    ),
    ("t5", {"num_beams": 5, "max_new_tokens": 30, "early_stopping": "never"}),
    ("t5", {}),  # no length stated: 20 new tokens
    ("flan-t5", {"num_beams": 3, "max_length": 40, "eos_token_id": [1, 17, 18]}),
    ("flan-t5", {"max_length": 50, "min_new_tokens": 4, "do_sample": True, "temperature": 0.7, "min_p": 0.02}),
]  # fmt: skip
CONVERSATIONS = 24
"""For each of the ten configs."""

ASKED = [
    Sampling(seed=3),
    Sampling(seed=3),
    Sampling(max_tokens=9, seed=3),
    Sampling(temperature=0.0),
    Sampling(temperature=0.8, top_p=0.9, seed=5),
    Sampling(temperature=1.3, top_k=7, seed=8, repetition_penalty=1.1),
    Sampling(logit_bias={7: -100.0, 11: 1.5, 23: 0.25}, seed=3),
]


@dataclass
class Outcome:
    """All that a runner said of one job."""

    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    steps: int = 0


def model_folder(path: Path) -> ModelFolder:
    return ModelFolder(path, path.name, json.loads((path / "config.json").read_text()))


def load(path: Path, **placement: Any) -> Seq2SeqRunner:
    return seq2seq.load(model_folder(path), Placement(**{"device": "cpu", "dtype": "float32", **placement}), "a test")


def run(runner: Seq2SeqRunner, jobs: Sequence[Job], chance: random.Random | None = None) -> dict[int, Outcome]:
    """Decodes the jobs: all at once, or joining at random times."""
    outcomes: dict[int, Outcome] = defaultdict(Outcome)
    waiting = list(jobs)
    while waiting or any(not (outcomes[job.id].finish or outcomes[job.id].error) for job in jobs):
        while waiting and (chance is None or chance.random() < 0.4):
            runner.add(waiting.pop(0))
        for step in runner.step():
            outcome = outcomes[step.id]
            outcome.tokens += step.tokens
            outcome.finish, outcome.error, outcome.steps = step.finish, step.error, outcome.steps + 1
    return outcomes


def reference(model: Any, job: Job) -> list[int]:
    """The answer of `generate`, for this job alone, without the start token and the end token."""
    sampling = job.sampling
    asked: dict[str, Any] = {
        name: value
        for name in ("temperature", "top_p", "top_k", "repetition_penalty")
        if (value := getattr(sampling, name)) is not None
    }
    if sampling.temperature is not None:
        asked |= {"num_beams": 1, "do_sample": sampling.temperature > 0}
    if sampling.temperature == 0:
        del asked["temperature"]
    if sampling.logit_bias:
        asked["sequence_bias"] = {(token,): bias for token, bias in sampling.logit_bias.items()}
    if sampling.max_tokens is not None:
        asked["max_new_tokens"] = sampling.max_tokens
    torch.manual_seed(sampling.seed or 0)
    ids = torch.tensor([job.prompt])
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), **asked)[0].tolist()[1:]
    eos = model.generation_config.eos_token_id
    return tokens[:-1] if tokens[-1] in (eos if isinstance(eos, list) else [eos]) else tokens


def stepwise_logits(runner: Seq2SeqRunner, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The decoder's logits after each token of a given answer, (tokens, vocabulary), through the caches."""
    ids = torch.tensor([prompt])
    encoded = runner._encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    chain = Chain(answer[0], runner._generation.ending, None)
    cohort = Cohort(1, 1, runner._shape, runner._decoder.relative)
    cohort.add(Answer(0, Rules(runner._generation.config, prompt), chain), runner._decoder.cross_keys_values(encoded))
    rows = []
    for following in [*answer[1:], answer[0]]:
        tokens, positions = cohort.begin()
        rows.append(runner._decoder(torch.tensor(tokens), torch.tensor(positions), [cohort]))
        chain.advance(following)
    return torch.cat(rows)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small are slower on more threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def blenderbot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_blenderbot(tmp_path_factory.mktemp("models") / "blenderbot")


@pytest.fixture(scope="module")
def greedy_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bart(tmp_path_factory.mktemp("models") / "bart", max_length=30, min_length=8)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("family", "generation"), CONFIGS)
def test_answers_are_those_of_generate(family: str, generation: dict[str, Any], tmp_path: Path) -> None:
    """Fails when a rule, a beam decision, a position or a neighbour in the batch changes a single token."""
    path = BUILDERS[family](tmp_path / "model", **generation)
    chance = random.Random(3)
    jobs = [Job(i, prompt, chance.choice(ASKED)) for i, prompt in enumerate(prompts(CONVERSATIONS, seed=17))]
    outcomes = run(load(path), jobs, chance)
    model = AutoModelForSeq2SeqLM.from_pretrained(path).eval()
    assert {job.id: outcomes[job.id].tokens for job in jobs} == {job.id: reference(model, job) for job in jobs}


@pytest.mark.parametrize("family", BUILDERS)
def test_logits_are_as_near_to_the_truth_as_transformers_own(family: str, tmp_path: Path) -> None:
    """Fails when a scale, a norm or a position is nearly right: too little to change a tiny model's tokens often."""
    path = BUILDERS[family](tmp_path / "model", num_beams=1, max_length=30)
    prompt, answer = prompts(2, seed=21, longest=29)
    runner = load(path)
    start = runner._generation.start
    with torch.no_grad():
        ours = stepwise_logits(runner, prompt, [start, *answer])
        exact, theirs = (
            AutoModelForSeq2SeqLM.from_pretrained(path, dtype=dtype)(
                input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *answer]])
            ).logits[0]
            for dtype in (torch.float64, torch.float32)
        )
    assert (ours - exact).abs().max() < 4 * (theirs - exact).abs().max()


def test_answers_alone_are_those_in_company(blenderbot: Path) -> None:
    """Fails when decoding one request takes another path than decoding many, cache compaction included."""
    runner = load(blenderbot)
    jobs = [Job(i, prompt, Sampling()) for i, prompt in enumerate(prompts(8, seed=5))]
    together = run(runner, jobs, random.Random(1))
    alone = {job.id: run(runner, [job])[job.id] for job in jobs}
    assert {i: outcome.tokens for i, outcome in together.items()} == {i: o.tokens for i, o in alone.items()}


def test_beams_answer_in_one_piece_and_chains_token_by_token(blenderbot: Path, greedy_bart: Path) -> None:
    """Fails when a client is told that beams stream, or waits for a greedy answer's end to see its first token."""
    prompt = prompts(1, seed=2)[0]
    beams, greedy = load(blenderbot), load(greedy_bart)
    assert (beams.info.streams, greedy.info.streams) == (False, True)
    assert run(beams, [Job(1, prompt, Sampling())])[1].steps == 1
    streamed = run(greedy, [Job(1, prompt, Sampling())])[1]
    assert streamed.steps >= len(streamed.tokens) > 1
    sampled = run(beams, [Job(1, prompt, Sampling(top_p=0.9, seed=1))])[1]
    assert sampled.steps >= len(sampled.tokens) > 1


def test_a_limit_on_what_is_drawn_asks_for_drawing_and_no_limit_does_not(blenderbot: Path) -> None:
    """Fails when the `top_p` of 1 that many clients always send turns beams into sampling, or a limit draws nothing."""
    runner, job = load(blenderbot), Job(1, prompts(1, seed=2)[0], Sampling())

    def answer(**asked: Any) -> list[int]:
        return run(runner, [msgspec.structs.replace(job, sampling=Sampling(**asked))])[1].tokens

    assert answer(top_p=1.0) == answer()
    assert answer(top_k=50, seed=1) == answer(temperature=1.0, top_k=50, seed=1) != answer(top_k=50, seed=2)
    assert answer(top_p=0.9, seed=1) == answer(temperature=1.0, top_p=0.9, seed=1) != answer(top_p=0.9, seed=2)
    assert answer(temperature=0.0, top_p=0.5, top_k=9) == answer(temperature=0.0)


def test_the_way_an_answer_ended(greedy_bart: Path, tmp_path: Path) -> None:
    """Fails when an answer that was cut is reported as complete, or the other way round."""
    cut = run(load(greedy_bart), [Job(1, prompts(1, seed=2)[0], Sampling(max_tokens=3))])[1]
    assert (len(cut.tokens), cut.finish) == (3, "length")
    path = build_flan_t5(tmp_path / "model", max_length=60)
    outcomes = run(load(path), [Job(i, prompt, Sampling()) for i, prompt in enumerate(prompts(12, seed=4))])
    assert {o.finish for o in outcomes.values() if len(o.tokens) < 59} == {"stop"}


def test_a_request_may_exceed_a_length_that_nobody_stated(tmp_path: Path, greedy_bart: Path) -> None:
    """Fails when T5 is stuck at transformers' assumed 20 tokens, or BART runs past the limit its config states."""
    path = BUILDERS["t5"](tmp_path / "model", eos_token_id=[VOCABULARY - 1], min_length=34)
    job = Job(1, prompts(1, seed=2)[0], Sampling(max_tokens=33))
    assert len(run(load(path), [job])[1].tokens) == 33
    assert len(run(load(greedy_bart), [job])[1].tokens) <= 29


def test_a_stated_length_is_told_and_asking_for_it_changes_nothing(blenderbot: Path, tmp_path: Path) -> None:
    """Fails when the start token counts as one of the answer's, or transformers' assumed 20 tokens as the model's."""
    runner = load(blenderbot)
    assert runner.info.longest_answer == BLENDERBOT_GENERATION["max_length"] - 1
    assert load(BUILDERS["t5"](tmp_path / "silent")).info.longest_answer is None
    assert load(BUILDERS["t5"](tmp_path / "telling", max_new_tokens=30)).info.longest_answer == 30
    asked = Sampling(max_tokens=runner.info.longest_answer)
    texts = prompts(4, seed=2)
    own = run(runner, [Job(i, text, Sampling()) for i, text in enumerate(texts)])
    assert run(runner, [Job(i, text, asked) for i, text in enumerate(texts)]) == own


def test_a_seed_concerns_its_own_request_alone(blenderbot: Path) -> None:
    """Fails when two users share a random stream: the same seed must give the same answer whatever else is drawn."""
    runner = load(blenderbot)
    prompt, *others = prompts(6, seed=9)
    seeded = Job(0, prompt, Sampling(temperature=1.0, seed=42))
    crowd = [Job(i + 1, other, Sampling(temperature=1.0)) for i, other in enumerate(others)]
    alone = run(runner, [seeded])[0].tokens
    assert run(runner, [*crowd, seeded], random.Random(4))[0].tokens == alone
    assert run(runner, [msgspec.structs.replace(seeded, sampling=Sampling(temperature=1.0))])[0].tokens != alone


def test_r03_a_broken_row_fails_alone(tmp_path: Path) -> None:
    """R3. Fails when one prompt's NaN reaches other rows, at once or through a slot that is used again later."""
    poison = VOCABULARY - 1
    path = build_flan_t5(tmp_path / "model", num_beams=3, max_length=30, bad_words_ids=[[poison]])
    healthy = [Job(i, prompt, Sampling()) for i, prompt in enumerate(prompts(8, seed=6)) if poison not in prompt]
    runner = load(path)
    expected = {i: o.tokens for i, o in run(runner, healthy).items()}
    runner._encoder.embed_tokens.weight[poison] = torch.nan
    broken = [Job(100 + i, [5, poison, 6, 7, 2], Sampling()) for i in range(3)]
    outcomes = run(runner, [*healthy[:3], *broken, *healthy[3:]], random.Random(2))
    assert all("not finite" in (outcomes[job.id].error or "") for job in broken)
    assert {job.id: outcomes[job.id].tokens for job in healthy} == expected


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [([], "no tokens"), ([3] * (POSITIONS + 1), "reads 64"), ([3, VOCABULARY], "vocabulary"), ([-1], "vocabulary")],
)
def test_an_impossible_prompt_fails_alone(blenderbot: Path, prompt: list[int], fault: str) -> None:
    """Fails when a bad prompt raises out of `step`, which would end the answers of everyone."""
    outcomes = run(load(blenderbot), [Job(1, [3, 4, 2], Sampling()), Job(2, prompt, Sampling())])
    assert fault in (outcomes[2].error or "")
    assert outcomes[1].tokens


def test_cancel_frees_the_rows_at_once(blenderbot: Path) -> None:
    """Fails when a cancelled answer is still decoded, still reported, keeps its id, or disturbs those that go on."""
    runner = load(blenderbot, max_batch=3)
    jobs = [Job(i, prompt, Sampling()) for i, prompt in enumerate(prompts(4, seed=8))]
    expected = run(runner, jobs[1:2])[1].tokens
    for job in jobs:
        runner.add(job)
    for _ in range(5):
        runner.step()
    for cancelled in (0, 2, 3, 77):  # two that are decoded, one that waits, one that never was
        runner.cancel(cancelled)
    outcomes = run(runner, [])
    assert not outcomes
    seen: dict[int, list[int]] = {}
    while not seen:
        seen = {step.id: step.tokens for step in runner.step()}
    assert seen == {1: expected}
    assert runner.step() == []
    assert run(runner, jobs[:1])[0].finish


def test_more_jobs_than_the_batch_holds(blenderbot: Path) -> None:
    """Fails when jobs beyond `max_batch` are lost or decoded all the same."""
    runner = load(blenderbot, max_batch=2)
    jobs = [Job(i, prompt, Sampling()) for i, prompt in enumerate(prompts(5, seed=8))]
    for job in jobs[:-1]:
        runner.add(job)
    runner.step()
    assert runner._active == 2
    outcomes = run(runner, jobs[-1:])
    while runner._active:
        outcomes.update({step.id: Outcome(step.tokens, step.finish) for step in runner.step()})
    assert outcomes[4].finish


def test_r22_caches_keep_to_their_budget_and_change_no_answer(blenderbot: Path) -> None:
    """R22. Fails when the largest crowd and the longest answer ever take memory for good, or a small budget lets all
    join at once, loses an answer, or changes one."""
    mixed = [Sampling(), Sampling(temperature=0.0), Sampling(max_tokens=9)]
    jobs = [Job(i, prompt, mixed[i % 3]) for i, prompt in enumerate(prompts(12, seed=5))]
    free = load(blenderbot)
    expected = run(free, jobs)
    crowd = free._memory
    tight = load(blenderbot, cache_bytes=crowd // 3)
    for job in jobs:
        tight.add(job)
    tokens: dict[int, list[int]] = defaultdict(list)
    peak = most = 0
    while tight._waiting or tight._active:
        for step in tight.step():
            tokens[step.id] += step.tokens
        peak, most = max(peak, tight._memory), max(most, tight._active)
    assert 1 < most < len(jobs)
    assert tight._memory <= crowd // 3 < peak < crowd  # answers under way may outgrow it
    assert tokens == {job.id: expected[job.id].tokens for job in jobs}
    alone = load(blenderbot, cache_bytes=1)
    assert run(alone, jobs[:2]) == {job.id: expected[job.id] for job in jobs[:2]}
    assert alone._memory == 0


def test_memory_is_given_back_between_two_steps_of_those_that_go_on(greedy_bart: Path) -> None:
    """Fails when the keys of an answer go with the memory of one that has ended, or one that joins finds no place."""
    jobs = [Job(i, prompt, Sampling(max_tokens=3 + 4 * (i % 7))) for i, prompt in enumerate(prompts(14, seed=5))]
    expected = run(load(greedy_bart), jobs)
    runner = load(greedy_bart)
    tokens: dict[int, list[int]] = defaultdict(list)
    waiting = list(jobs)
    sizes = set()
    while waiting or runner._active:
        if waiting and runner._active < 8:
            runner.add(waiting.pop(0))
        for step in runner.step():
            tokens[step.id] += step.tokens
        for cohort in runner._cohorts.values():
            with torch.inference_mode():
                cohort.fit()
        sizes.add(runner._memory)
    assert tokens == {job.id: expected[job.id].tokens for job in jobs}
    assert min(sizes) == 0 < len(sizes) - 3


def test_r03_an_answer_without_memory_to_begin_fails_alone(blenderbot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R3. Fails when memory that is not there raises out of `step`, or leaves half of an answer in the caches."""
    jobs = [Job(i, prompt, Sampling()) for i, prompt in enumerate(prompts(6, seed=5))]
    expected = run(load(blenderbot), jobs)
    zeros = KeyValues._zeros
    for refused in range(4):  # the first slots of both caches, and later ones
        runner = load(blenderbot)
        calls = iter(range(1000))

        def short(store: KeyValues, slots: int, capacity: int) -> torch.Tensor:
            if slots and next(calls) == refused:  # noqa: B023 - called in this round only
                raise RuntimeError("out of memory")
            return zeros(store, slots, capacity)

        monkeypatch.setattr(KeyValues, "_zeros", short)
        outcomes = run(runner, jobs)
        failed = [i for i, outcome in outcomes.items() if outcome.error]
        assert len(failed) == 1
        assert all(outcomes[job.id] == expected[job.id] for job in jobs if job.id not in failed)


@pytest.mark.parametrize(
    ("generation", "named"),
    [
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"num_return_sequences": 2, "num_beams": 2}, "num_return_sequences"),
        ({"num_beams": 4, "do_sample": True}, "do_sample"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"suppress_tokens": [5]}, "suppress_tokens"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p"),
        ({"bad_words_ids": [[9999]]}, "outside the vocabulary"),
    ],
)
def test_a_config_that_would_be_ignored_is_refused(tmp_path: Path, generation: dict[str, Any], named: str) -> None:
    """Fails when a generation rule is silently dropped: the answers would differ and nobody would know why."""
    path = build_bart(tmp_path / "model", max_length=20)
    written = path / "generation_config.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | generation))
    with pytest.raises(ModelError, match=named) as refusal:
        load(path)
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_loaded_is_one_line(blenderbot: Path, tmp_path: Path) -> None:
    """Fails when an unserved architecture, precision or a damaged folder ends in a traceback."""
    whisper = ModelFolder(tmp_path, "whisper-tiny", {"model_type": "whisper", "is_encoder_decoder": True})
    with pytest.raises(ModelError, match="serves bart, blenderbot"):
        seq2seq.load(whisper, Placement(), "a test")
    with pytest.raises(ModelError, match="float16"):
        load(blenderbot, dtype="float16")
    empty = ModelFolder(tmp_path, "empty", {"model_type": "bart"})
    with pytest.raises(ModelError, match="empty"):
        seq2seq.load(empty, Placement(), "a test")


def test_text_as_the_conversational_pipeline_decoded_it(blenderbot: Path) -> None:
    """Fails when the leading space goes, special tokens come through, or spaces before punctuation stay."""
    tokens = AutoTokenizer.from_pretrained(blenderbot)(" I like it , do n't you ?").input_ids
    detokenizer = load(blenderbot).detokenizer()
    assert detokenizer.push([1, *tokens]) + detokenizer.flush() == " I like it, don't you?"


def test_bfloat16_keeps_the_rules(blenderbot: Path) -> None:
    """Fails when a cache, a mask or a score stays in another precision than the model."""
    outcome = run(load(blenderbot, dtype="bfloat16"), [Job(1, [3, 4, 5, 2], Sampling())])[1]
    assert 18 <= len(outcome.tokens) <= 58


@pytest.mark.skipif(not int8.supported(), reason="needs a CPU with VNNI")
@pytest.mark.parametrize("family", ["blenderbot", "t5", "flan-t5"])
def test_int8_keeps_the_rules(family: str, tmp_path: Path) -> None:
    """Fails when 8 bits change more than numbers: lengths, n-grams, or independence of other answers."""
    generation = {"num_beams": 4, "min_length": 20, "max_length": 40, "no_repeat_ngram_size": 3}
    runner = load(BUILDERS[family](tmp_path / "model", **generation), dtype="int8")
    assert runner.info.dtype == "int8"
    jobs = [Job(i, prompt, Sampling()) for i, prompt in enumerate(prompts(8, seed=3))]
    outcomes = run(runner, jobs, random.Random(1))
    assert outcomes[0].tokens == run(runner, jobs[:1])[0].tokens
    for outcome in outcomes.values():
        said = [tuple(outcome.tokens[i : i + 3]) for i in range(len(outcome.tokens) - 2)]
        assert 19 <= len(outcome.tokens) <= 39
        assert len(set(said)) == len(said)


@pytest.mark.skipif(sys.platform != "linux", reason="asks GNU's OpenMP")
@pytest.mark.parametrize(
    ("own", "spins"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_waiting_threads_soon_sleep(own: dict[str, str], spins: str) -> None:
    """Fails when torch is loaded before it is told: its threads then spin, and answers halt beside another program."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    told = subprocess.run(
        [sys.executable, "-c", "import parley.engine.runners.seq2seq"],
        env={**environment, "OMP_DISPLAY_ENV": "VERBOSE", **own},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in told
