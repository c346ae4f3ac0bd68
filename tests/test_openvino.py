"""The OpenVINO runner on the embedded model: equal to transformers, batched, seeded, cancelled, bounded."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import openvino as ov
import pytest
from openvino._offline_transformations import paged_attention_transformation

from parley.contract.chat import Message
from parley.engine.hardware import cache_blocks
from parley.engine.launch import choose
from parley.engine.model import ModelError, ModelFolder, resolve
from parley.engine.runner import Job, Placement, Sampling, Step
from parley.engine.runners import openvino
from parley.engine.runners.openvino import runner as runner_module
from parley.engine.runners.openvino.cache import (
    BLOCK_TOKENS,
    RESERVED_BYTES,
    block_bytes,
    cache_memory,
    dimensions,
    kv_blocks,
)
from parley.engine.runners.openvino.precision import precision
from parley.engine.runners.openvino.runner import OpenVINORunner
from parley.settings import DEFAULT_SYSTEM_PROMPT
from parley.tokenizer import Tokenizer
from tests.conftest import POCKET

NAMES = [
    "Batman", "Superman", "Magneto", "Hulk", "Storm", "Asterix", "Tintin", "Akira", "Watchmen", "Maus", "Krypton",
    "Joker", "Thor", "Snoopy", "Spawn",
]  # fmt: skip
ASKED = [
    "Who is {}?", "who created {}", "Tell me about {}.", "when did {} first appear", "{} publisher?", "is {} a hero",
    "What powers does {} have?", "where does {} live", "Who is the enemy of {}?", "do you like {}", "{}", "why {}?",
    "Recommend something like {}", "What's the weather in {}?",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return resolve("pocket", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def runner(folder: ModelFolder) -> OpenVINORunner:
    return openvino.load(folder, Placement(), "test")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = Tokenizer.load(POCKET)
    texts = [question.format(name) for name in NAMES for question in ASKED]
    return [tokenizer.chat([Message("system", DEFAULT_SYSTEM_PROMPT), Message("user", text)]) for text in texts]


def run(runner: OpenVINORunner, jobs: Sequence[Job]) -> dict[int, list[int]]:
    """All jobs together, to their ends."""
    for job in jobs:
        runner.add(job)
    return finished(runner, jobs)


def finished(runner: OpenVINORunner, jobs: Sequence[Job]) -> dict[int, list[int]]:
    """What is still to come of jobs that were added, to their ends."""
    tokens: dict[int, list[int]] = {job.id: [] for job in jobs}
    open_jobs = set(tokens)
    while open_jobs:
        for step in runner.step():
            assert step.error is None
            tokens[step.id] += step.tokens
            if step.finish:
                open_jobs.remove(step.id)
    return tokens


def test_what_the_library_does_not_tell_is_not_told(runner: OpenVINORunner, prompts: list[list[int]]) -> None:
    """Fails when a count of cached tokens is made up: GenAI reuses prefixes and does not say how much of them."""
    for _ in range(2):
        runner.add(Job(1, prompts[0], Sampling(max_tokens=2)))
        steps: list[Step] = []
        while not (steps and steps[-1].finish):
            steps += runner.step()
        assert {step.cached for step in steps} == {None}


def test_greedy_answers_are_transformers_answers(runner: OpenVINORunner, prompts: list[list[int]]) -> None:
    """Fails when the export, the cache or the batch changes a single token of the embedded model's answers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32)
    jobs = [Job(index, prompt, Sampling(max_tokens=32)) for index, prompt in enumerate(prompts)]
    assert len(jobs) >= 200
    answers = run(runner, jobs)
    for job in jobs:
        ids = torch.tensor([job.prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False)
        expected = whole[0, len(job.prompt) :].tolist()
        assert answers[job.id] == [token for token in expected if token != model.generation_config.eos_token_id]


def test_a_seed_affects_only_its_own_request(runner: OpenVINORunner, prompts: list[list[int]]) -> None:
    """Fails when the same seed gives another answer in company, or one request's seed decides another's answer."""
    hot = Sampling(max_tokens=24, temperature=1.5, seed=7)
    alone = run(runner, [Job(1000, prompts[0], hot)])[1000]
    company = [
        Job(2000 + index, prompts[index % 50], Sampling(max_tokens=24, temperature=1.5, seed=index))
        for index in range(20)
    ]
    together = run(runner, [Job(1001, prompts[0], hot), *company])
    assert together[1001] == alone
    assert len({tuple(tokens) for tokens in together.values()}) > 10


def test_without_a_seed_every_answer_is_drawn_afresh(runner: OpenVINORunner, prompts: list[list[int]]) -> None:
    """Fails when "regenerate" gives the same answer again, or `n` choices without a seed are one."""
    hot = Sampling(max_tokens=24, temperature=2.0)
    together = run(runner, [Job(2100 + index, prompts[0], hot) for index in range(3)])
    later = run(runner, [Job(2103, prompts[0], hot)])
    assert len({tuple(tokens) for tokens in [*together.values(), *later.values()]}) == 4


def test_a_temperature_next_to_zero_is_greedy(runner: OpenVINORunner, prompts: list[list[int]]) -> None:
    """Fails when logits divided by almost nothing overflow, and the answer is drawn from all tokens alike."""
    greedy = run(runner, [Job(4000, prompts[0], Sampling(max_tokens=8, temperature=0))])[4000]
    for number, temperature in enumerate((5e-324, 1e-40, 1e-20), 4001):
        assert run(runner, [Job(number, prompts[0], Sampling(max_tokens=8, temperature=temperature))])[number] == greedy


def test_r02_a_top_p_next_to_zero_leaves_the_likeliest_token(runner: OpenVINORunner, prompts: list[list[int]]) -> None:
    """R2. Fails when a number that is allowed becomes zero in single precision, and the engine refuses it."""
    greedy = run(runner, [Job(4100, prompts[0], Sampling(max_tokens=8, temperature=0))])[4100]
    for number, top_p in enumerate((0.0, 5e-324, 1e-40, 1e-20), 4101):
        sampling = Sampling(max_tokens=8, temperature=1.7, top_p=top_p)
        assert run(runner, [Job(number, prompts[0], sampling)])[number] == greedy


def test_a_cancelled_job_is_gone_and_the_others_are_not_disturbed(
    runner: OpenVINORunner, prompts: list[list[int]]
) -> None:
    """Fails when a client that left still uses the batch, or changes somebody else's answer."""
    kept = Job(3000, prompts[3], Sampling(max_tokens=20))
    expected = run(runner, [Job(3001, prompts[3], Sampling(max_tokens=20))])[3001]
    runner.add(Job(3002, prompts[4], Sampling(max_tokens=500, temperature=2.0, seed=1)))
    runner.add(kept)
    seen: list[int] = []
    finished = False
    runner.step()
    runner.cancel(3002)
    while not finished:
        for step in runner.step():
            assert step.id == 3000
            seen += step.tokens
            finished = step.finish is not None
    assert expected[-len(seen) :] == seen


def test_r22_more_long_requests_than_the_cache_holds_all_end(folder: ModelFolder, prompts: list[list[int]]) -> None:
    """Fails when a full cache hangs, crashes or loses requests (R22)."""
    small = openvino.load(folder, Placement(max_batch=2), "test")
    rng = Random(0)
    context = small.info.context_length
    long = [[*prompts[0], *(rng.choice(prompts)[0] for _ in range(context // 2))] for _ in range(64)]
    answers = run(small, [Job(index, prompt, Sampling(max_tokens=8)) for index, prompt in enumerate(long)])
    assert len(answers) == 64


def conversations(prompts: list[list[int]], count: int, tokens: int, seed: int) -> list[list[int]]:
    """Prompts of so many tokens that have nothing in common, as the cache sees it."""
    rng = Random(seed)
    return [[rng.choice(prompts)[0], *(rng.randrange(3, 2000) for _ in range(tokens - 1))] for _ in range(count)]


def alone(folder: ModelFolder, jobs: Sequence[Job], max_batch: int) -> dict[int, list[int]]:
    """What each job is answered when no other is there."""
    apart = openvino.load(folder, Placement(max_batch=max_batch), "test")
    return {job.id: run(apart, [job])[job.id] for job in jobs}


def test_r22_next_turns_that_come_together_are_all_answered(folder: ModelFolder, prompts: list[list[int]]) -> None:
    """Fails when prompts that hold cached beginnings and wait for more end one another's requests (R22)."""
    busy = openvino.load(folder, Placement(max_batch=8), "test")
    first = conversations(prompts, 8, 290, seed=1)
    run(busy, [Job(number, prompt, Sampling(max_tokens=4)) for number, prompt in enumerate(first)])
    more = conversations(prompts, 8, 40, seed=2)
    jobs = [Job(100 + number, first[number] + more[number], Sampling(max_tokens=6)) for number in range(8)]
    assert run(busy, jobs) == alone(folder, jobs, max_batch=8)


def test_r22_a_long_conversation_and_its_next_turn(folder: ModelFolder, prompts: list[list[int]]) -> None:
    """Fails when a cache for one conversation is held by the beginnings of two (R22)."""
    busy = openvino.load(folder, Placement(max_batch=1), "test")
    old, new = conversations(prompts, 2, 620, seed=3)
    run(busy, [Job(1, old, Sampling(max_tokens=4))])
    jobs = [
        Job(2, new, Sampling(max_tokens=4)),
        Job(3, old + new[:40], Sampling(max_tokens=4)),
        Job(4, old[:30], Sampling(max_tokens=4)),
    ]
    assert run(busy, jobs) == alone(folder, jobs, max_batch=1)


def test_r22_a_cancelled_answer_does_not_end_those_that_wait_for_its_blocks(
    folder: ModelFolder, prompts: list[list[int]]
) -> None:
    """Fails when the step after a cancel, which finds its blocks not free yet, fails everybody else (R22)."""
    busy = openvino.load(
        folder, Placement(max_batch=4, cache_bytes=32 * block_bytes(dimensions(folder), "float32")), "test"
    )
    running, stalled = conversations(prompts, 2, 900, seed=4)
    busy.add(Job(1, running, Sampling(max_tokens=100, temperature=5.0, seed=1)))
    assert not any(step.finish for _ in range(4) for step in busy.step())
    jobs = [Job(2, stalled, Sampling(max_tokens=5)), Job(3, running[:40][::-1], Sampling(max_tokens=5))]
    for job in jobs:
        busy.add(job)
    assert {step.id for step in busy.step()} <= {1}
    busy.cancel(1)
    assert finished(busy, jobs) == alone(folder, jobs, max_batch=4)


def test_r22_an_answer_that_was_given_up_goes_on_where_it_was(folder: ModelFolder, prompts: list[list[int]]) -> None:
    """Fails when an answer that is made again says something twice, or draws other tokens than before (R22)."""
    job = Job(7, prompts[0], Sampling(max_tokens=30, temperature=1.3, seed=11, logprobs=True))
    expected = alone(folder, [job], max_batch=4)[7]
    other = Job(7, prompts[0], Sampling(max_tokens=30, temperature=1.3, seed=12))
    assert alone(folder, [other], max_batch=4)[7] != expected
    loaded = openvino.load(folder, Placement(max_batch=4), "test")
    loaded.add(job)
    tokens: list[int] = []
    logprobs: list[float] = []
    ended = False
    for number in range(200):
        if number == 6:
            request = loaded._requests[7]
            request.handle.cancel()
            loaded._pipeline.step()
            loaded._give_up(request)
        for step in loaded.step():
            tokens += step.tokens
            logprobs += step.logprobs
            ended = step.finish is not None
        if ended:
            break
    assert ended
    assert tokens == expected
    assert len(logprobs) == len(tokens)


def test_the_size_of_the_cache() -> None:
    """Fails when the cache has no room for the longest conversation, or takes more than it may or was told to."""
    size = block_bytes({"num_hidden_layers": 6, "num_attention_heads": 4, "hidden_size": 256}, "float32")
    assert size == 2 * 6 * 256 * 32 * 4
    assert cache_blocks(size, 32, 32, 2**40, None) == 8 * 32
    assert cache_blocks(size, 32, 2, 2**40, None) == 32
    assert cache_blocks(size, 32, 32, 100 * size, None) == 100
    assert cache_blocks(size, 32, 32, 2**40, 500 * size) == 500
    assert kv_blocks(size, 1024, Placement(), 40 * size) == 40
    assert kv_blocks(size, 131_072, Placement(), 40 * size) == 40
    assert cache_memory(10 * 2**30, 2**30) == 4 * 2**30
    assert cache_memory(4 * 2**30, 3 * 2**30 + 2**29) == RESERVED_BYTES
    with pytest.raises(ModelError, match="leaves no memory"):
        kv_blocks(size, 1024, Placement(), cache_memory(2**30, 2**30))
    gpt2 = {"n_layer": 6, "n_head": 4, "n_embd": 256, "n_positions": 512}
    assert block_bytes(dimensions(ModelFolder(POCKET, "gpt2", gpt2)), "float32") == size


def test_conversations_are_as_long_as_a_small_machine_can_keep_them(
    folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when the cache of a model of long context grows, as conversations end, until the engine is killed."""
    size = block_bytes(dimensions(folder), "float32")
    weights = (POCKET / "openvino" / "openvino_model.bin").stat().st_size
    monkeypatch.setattr(runner_module, "memory_limit", lambda: RESERVED_BYTES + weights + 10 * size)
    loaded = openvino.load(folder, Placement(dtype="float32"), "test")
    assert loaded.info.context_length == 10 * BLOCK_TOKENS
    run(loaded, [Job(1, list(range(3, 203)), Sampling(max_tokens=100))])
    assert loaded._pipeline.get_metrics().kv_cache_size_in_bytes <= 10 * size


def with_rules(folder: ModelFolder, place: Path, **rules: object) -> ModelFolder:
    """The model with more in its generation config."""
    shutil.copytree(folder.path, place)
    config = json.loads((place / "generation_config.json").read_text("utf-8"))
    (place / "generation_config.json").write_text(json.dumps(config | rules), "utf-8")
    return ModelFolder(place, "ruled", folder.config)


@pytest.mark.parametrize(
    "rule",
    [
        {"no_repeat_ngram_size": 3},
        {"bad_words_ids": [[7]]},
        {"suppress_tokens": [7]},
        {"typical_p": 0.9},
        {"forced_eos_token_id": 2},
    ],
    ids=lambda rule: next(iter(rule)),
)
def test_a_rule_that_would_be_dropped_is_refused_by_name(
    folder: ModelFolder, tmp_path: Path, rule: dict[str, object]
) -> None:
    """Fails when an exported model answers otherwise than before, because its own rules are dropped without a word."""
    with pytest.raises(ModelError, match=f"sets {next(iter(rule))}, which openvino does not honour"):
        openvino.load(with_rules(folder, tmp_path / "ruled", **rule), Placement(), "test")


def test_the_models_own_rules_are_kept(folder: ModelFolder, prompts: list[list[int]], tmp_path: Path) -> None:
    """Fails when a shortest answer or a smallest probability from the generation config is not applied."""
    ruled = with_rules(folder, tmp_path / "ruled", min_new_tokens=40, min_p=0.5, typical_p=1.0, suppress_tokens=[])
    loaded = openvino.load(ruled, Placement(dtype="float32"), "test")
    assert len(run(loaded, [Job(1, prompts[0], Sampling(max_tokens=60))])[1]) >= 40
    assert len(run(loaded, [Job(2, prompts[0], Sampling(max_tokens=5))])[2]) == 5
    drawn = [Job(seed, prompts[0], Sampling(max_tokens=20, temperature=1.5, seed=seed)) for seed in range(10, 18)]
    greedy = run(loaded, [Job(1, prompts[0], Sampling(max_tokens=20))])[1]
    assert all(tokens == greedy for tokens in run(loaded, drawn).values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_takes_the_bytes_that_it_is_counted_with(
    folder: ModelFolder, prompts: list[list[int]], dtype: str
) -> None:
    """Fails when a cache of this precision takes more memory than `PARLEY_KV_CACHE_GB` allows, or than is there."""
    loaded = openvino.load(folder, Placement(dtype=dtype, max_batch=1), "test")
    run(loaded, [Job(1, prompts[0], Sampling(max_tokens=2))])
    taken = loaded._pipeline.get_metrics().kv_cache_size_in_bytes
    blocks, rest = divmod(taken, block_bytes(folder.config, dtype))
    assert rest == 0
    assert 0 < blocks <= loaded.info.context_length // BLOCK_TOKENS


def test_a_cache_too_small_for_one_conversation_is_one_line(folder: ModelFolder) -> None:
    """Fails when an operator's small cache makes long conversations fail one by one, instead of the start."""
    with pytest.raises(ModelError, match=r"room for \d+ tokens .* set PARLEY_KV_CACHE_GB to 0\.\d+ or more"):
        openvino.load(folder, Placement(cache_bytes=2**20), "test")


def test_precision_follows_what_is_asked_and_how_weights_are_stored() -> None:
    """Fails when weights stored in float32 are computed in less unasked, or bfloat16 where the CPU has none."""
    native = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert precision(Placement(), "float32") == "float32"
    assert precision(Placement(dtype="int8"), "bfloat16") == "int8"
    assert precision(Placement(), "bfloat16") == ("bfloat16" if native else "float32")


@pytest.mark.parametrize(
    ("placement", "words"),
    [(Placement(dtype="float16"), "has no float16"), (Placement(dtype="int8"), "no openvino-int8/ export")],
)
def test_a_precision_that_is_not_there_is_one_line(folder: ModelFolder, placement: Placement, words: str) -> None:
    """Fails when an operator's wrong precision is ignored, or ends in a library's traceback."""
    with pytest.raises(ModelError, match=words):
        openvino.load(folder, placement, "test")


def test_the_embedded_graph_is_read_in_few_operations() -> None:
    """Fails when rotary positions or projections of the embedded model's export fall apart, which is a fifth slower."""
    graph = ov.Core().read_model(POCKET / "openvino" / "openvino_model.xml")
    paged_attention_transformation(graph)  # what GenAI's pipeline does with it first
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = Counter(node.rt_info["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops())
    layers = kinds["PagedAttention"]
    assert layers == json.loads((POCKET / "config.json").read_text())["num_hidden_layers"]
    assert kinds["RoPE"] == 2 * layers  # queries and keys
    assert kinds["FullyConnected"] == 4 * layers + 1  # into and out of attention and feed-forward; the logits


def test_auto_says_why(folder: ModelFolder) -> None:
    """Fails when the embedded model is not served by the fast engine where it can be, or the reason is not told."""
    assert choose("auto", folder, None).engine == "openvino"
    assert choose("auto", folder, "cuda").engine == "transformers"
    assert choose("auto", folder, None, installed=lambda engine: engine != "openvino").engine == "transformers"
    with pytest.raises(ModelError, match="openvino_genai, which is not installed"):
        choose("openvino", folder, None, installed=lambda _: False)
    with pytest.raises(ModelError, match="decoder-only"):
        choose("seq2seq", folder, None)
    with pytest.raises(ModelError, match="OpenVINO serves on the CPU, and the device asked for is cuda"):
        choose("openvino", folder, "cuda")
