"""The transformers runner on tiny models of real architectures: its tokens against `generate`, and its isolation."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, LlamaConfig
from transformers.generation.continuous_batching.cache import PagedAttentionMemoryHandler

from parley.engine.answer import Answer
from parley.engine.engine import Finish
from parley.engine.model import ModelError, ModelFolder, resolve
from parley.engine.runner import Job, Placement, Sampling, Step
from parley.engine.runners import hardware, transformers
from parley.engine.runners.transformers import batch
from parley.engine.runners.transformers.runner import TransformersRunner
from tests.models_decoder import CONTEXT, build_gpt2, build_llama, build_phi3, build_qwen2, train_tokenizer

FLOAT32 = Placement(device="cpu", dtype="float32", threads=1)  # tiny matrices only wait for a second thread
GREEDY = Sampling(max_tokens=24, temperature=0)
NAN_TOKEN = 319
FAILING_TOKEN = 318


def folder_of(path: Path) -> ModelFolder:
    return resolve(str(path), path.parent / "cache")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return folder_of(build_llama(tmp_path_factory.mktemp("decoder") / "llama"))


@pytest.fixture
def runner(llama: ModelFolder) -> TransformersRunner:
    return transformers.load(llama, FLOAT32, "a test")


def prompts(*lengths: int) -> list[list[int]]:
    """Random prompts without control tokens, and without the two that poison."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, 318, (length,), generator=generator).tolist() for length in lengths]


def run(runner: TransformersRunner, jobs: list[Job], late: list[Job] | None = None) -> dict[int, Step]:
    """All answers, each as one step with all its tokens; `late` jobs join while the others decode."""
    for job in jobs:
        runner.add(job)
    tokens: dict[int, list[int]] = {job.id: [] for job in [*jobs, *(late or [])]}
    ended: dict[int, Step] = {}
    for count in range(2000):
        if count == 7:
            for job in late or []:
                runner.add(job)
        for step in runner.step():
            assert step.id not in ended
            tokens[step.id] += step.tokens
            if step.finish or step.error:
                ended[step.id] = Step(step.id, tokens[step.id], step.finish, step.error, step.cached)
        if len(ended) == len(tokens):
            return ended
    raise AssertionError(f"{len(tokens) - len(ended)} jobs never ended")


def generate(folder: ModelFolder, prompt: list[int], **options: Any) -> list[int]:
    """What transformers' `generate` answers to one prompt alone, without the end token."""
    model = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32)
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()
    return [token for token in output if token != 2]


def free_cache(runner: TransformersRunner) -> float:
    """The share of the cache that no request holds; blocks kept only for a later prompt's prefix count as free."""
    cache = runner._batch._processor.cache
    cache.evict_cached_blocks()
    cache.pool.try_to_free_sectors()
    return float(cache.compute_free_capacity())


@pytest.mark.parametrize("build", [build_llama, build_qwen2, build_gpt2])
def test_greedy_answers_equal_generate_in_a_mixed_batch(build: Callable[..., Path], tmp_path: Path) -> None:
    """Fails when positions, masks, the cache or a late join change an answer."""
    folder = folder_of(build(tmp_path / "model"))
    texts = prompts(1, 2, 33, 64, 5, 200, 130)
    jobs = [Job(i, text, GREEDY) for i, text in enumerate(texts)]
    ended = run(transformers.load(folder, FLOAT32, "a test"), jobs[:4], late=jobs[4:])
    for i, text in enumerate(texts):
        assert ended[i].tokens == generate(folder, text, max_new_tokens=24, do_sample=False), f"prompt {i}"


def test_prompts_too_long_for_one_step_are_prefilled_in_several(runner: TransformersRunner, llama: ModelFolder) -> None:
    """Fails when a prompt that is split over steps attends to the wrong keys."""
    texts = prompts(400, 410, 420, 430)
    ended = run(runner, [Job(i, text, GREEDY) for i, text in enumerate(texts)])
    for i, text in enumerate(texts):
        assert ended[i].tokens == generate(llama, text, max_new_tokens=24, do_sample=False)


def test_phi3_is_served_by_transformers_own_class(tmp_path: Path) -> None:
    """Fails when the code in its makers' folder is run, or the model cannot be loaded without it."""
    folder = folder_of(build_phi3(tmp_path / "phi3"))
    (text,) = prompts(40)
    ended = run(transformers.load(folder, FLOAT32, "a test"), [Job(1, text, GREEDY)])
    with torch.no_grad():
        own = AutoModelForCausalLM.from_pretrained(folder.path, trust_remote_code=False, dtype=torch.float32)
        answer = own.generate(torch.tensor([text]), max_new_tokens=24, do_sample=False)[0, len(text) :].tolist()
    assert ended[1].tokens == [token for token in answer if token != 2]


def test_r22_a_cache_on_a_gpu_leaves_room_for_reading_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when transformers refuses to begin, as its own count of the memory finds too little for the attention."""
    free = 14 * 2**30
    config = LlamaConfig(  # of Llama 3.2, 1B
        vocab_size=128_256,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
    )
    model = SimpleNamespace(config=config, dtype=torch.bfloat16, device=torch.device("cuda"))
    monkeypatch.setattr(hardware, "cache_bytes", lambda _: int(0.7 * free))
    blocks = batch._blocks(model, Placement(), 131_072)
    block_bytes = 2 * 16 * 8 * 64 * 2 * batch._PAGE
    assert 0.4 * free < blocks * block_bytes < 0.7 * free
    monkeypatch.setattr(PagedAttentionMemoryHandler, "get_available_memory", lambda _: int(0.9 * free))
    handler = PagedAttentionMemoryHandler(
        config,
        ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=batch._STEP_TOKENS, use_async_batching=False),
        torch.bfloat16,
        bytes_per_sector=block_bytes,
        tokens_per_sector=batch._PAGE,
        bytes_per_block=block_bytes,
        attn_types=["full_attention"],
    )
    assert handler.infer_max_batch_tokens_and_num_sectors() == (batch._STEP_TOKENS, blocks)


def test_shared_prefix_is_reused_and_changes_nothing(runner: TransformersRunner, llama: ModelFolder) -> None:
    """Fails when a second turn pays for its history again, or reads someone else's."""
    (first,) = prompts(150)
    assert run(runner, [Job(1, first, GREEDY)])[1].cached == 0
    second = [*first, 7, 8, 9]
    ended = run(runner, [Job(2, second, GREEDY)])[2]
    assert ended.cached == 128
    assert ended.tokens == generate(llama, second, max_new_tokens=24, do_sample=False)


def test_cached_tokens_are_those_whose_work_was_reused(runner: TransformersRunner) -> None:
    """Fails when reuse is told that did not happen: cold, of others' prompts, or after the cache dropped the prefix."""
    first, stranger = prompts(150, 151)

    def cached(prompt: list[int]) -> int | None:
        return run(runner, [Job(1, prompt, GREEDY)])[1].cached

    assert [cached(first), cached(stranger)] == [0, 0]
    pages = [cached(first[:length] + stranger) for length in (31, 32, 33, 63, 64, 100, 150)]
    assert pages == [0, 32, 32, 32, 64, 96, 128]
    together = [Job(i, [*first, 5 + i, 9], GREEDY) for i in range(3)]
    assert [run(runner, together)[i].cached for i in range(3)] == [128] * 3
    runner._batch._processor.cache.evict_cached_blocks()
    assert cached(first) == 0


def test_an_answer_ended_by_a_stop_string_tells_what_was_reused(runner: TransformersRunner) -> None:
    """Fails when a prompt counts as read anew because a stop string, and not the model, ended its answer."""
    (prompt,) = prompts(150)
    said = run(runner, [Job(1, prompt, GREEDY)])[1].tokens
    job = Job(2, prompt, Sampling(max_tokens=24, temperature=0, stop=(runner.detokenizer().push(said)[:1],)))
    runner.add(job)
    answer = Answer(job, runner.detokenizer())
    events = [answer.advance(step) for _ in said for step in runner.step()]
    ended = next(event for event in events if isinstance(event, Finish))
    assert ended.completion_tokens < len(said)
    assert (ended.reason, ended.cached_tokens) == ("stop", 128)


@pytest.mark.parametrize(
    "rules",
    [
        {"repetition_penalty": 1.6},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 20, "eos_token_id": list(range(2, 100))},
        {"suppress_tokens": list(range(3, 200))},
    ],
)
def test_rules_of_the_generation_config_are_followed(rules: dict[str, Any], tmp_path: Path) -> None:
    """Fails when what the model's publisher asks for is dropped, as continuous batching itself drops it."""
    folder = folder_of(build_llama(tmp_path / "model", do_sample=False, **rules))
    texts = prompts(9, 40)
    ended = run(
        transformers.load(folder, FLOAT32, "a test"), [Job(i, t, Sampling(max_tokens=24)) for i, t in enumerate(texts)]
    )
    stops = rules.get("eos_token_id", [2])
    for i, text in enumerate(texts):
        answer = generate(folder, text, max_new_tokens=24)
        assert ended[i].tokens == (answer[:-1] if answer[-1] in stops else answer)


def test_repetition_penalty_of_one_request_is_its_own(runner: TransformersRunner, llama: ModelFolder) -> None:
    """Fails when one request's parameters leak into its neighbours."""
    (text,) = prompts(20)
    penalised = Sampling(max_tokens=24, temperature=0, repetition_penalty=1.8)
    ended = run(runner, [Job(1, text, penalised), Job(2, text, GREEDY)])
    options = {"max_new_tokens": 24, "do_sample": False}
    assert ended[1].tokens == generate(llama, text, repetition_penalty=1.8, **options)
    assert ended[2].tokens == generate(llama, text, **options)
    assert ended[1].tokens != ended[2].tokens


def test_presence_penalty_keeps_tokens_from_coming_back(runner: TransformersRunner) -> None:
    """Fails when the penalty counts the prompt, or does nothing."""
    (text,) = prompts(20)
    tokens = run(runner, [Job(1, text, Sampling(max_tokens=60, temperature=0, presence_penalty=1e4))])[1].tokens
    plain = run(runner, [Job(2, text, Sampling(max_tokens=60, temperature=0))])[2].tokens
    assert len(set(tokens)) == len(tokens)
    assert len(set(plain)) < len(plain)


def test_a_bias_is_generate_s_and_of_its_own_request(runner: TransformersRunner, llama: ModelFolder) -> None:
    """Fails when a bias is weaker or stronger than asked, comes after other rules, or leaks into a neighbour."""
    (text,) = prompts(20)
    options = {"max_new_tokens": 24, "do_sample": False}
    plain = generate(llama, text, **options)
    bias = {plain[0]: -100.0, plain[3]: 0.5, 200: 0.25}
    both = Sampling(max_tokens=24, temperature=0, logit_bias=bias, repetition_penalty=1.3)
    jobs = [Job(1, text, Sampling(max_tokens=24, temperature=0, logit_bias=bias)), Job(2, text, GREEDY)]
    ended = run(runner, [*jobs, Job(3, text, both)])
    biased = {(token,): value for token, value in bias.items()}
    assert ended[1].tokens == generate(llama, text, sequence_bias=biased, **options)
    assert ended[2].tokens == plain
    assert ended[3].tokens == generate(llama, text, sequence_bias=biased, repetition_penalty=1.3, **options)
    assert ended[1].tokens != plain


def test_log_probabilities_are_the_model_s_before_any_rule(runner: TransformersRunner, llama: ModelFolder) -> None:
    """Fails when a temperature, a penalty or a bias changes what is told, or it belongs to another row or token."""
    text, other = prompts(30, 9)
    rules: dict[str, Any] = {"logit_bias": {9: 3.0}, "repetition_penalty": 1.5, "presence_penalty": 0.3}
    asked = Sampling(max_tokens=12, temperature=1.7, seed=4, logprobs=True, top_logprobs=3, **rules)
    told: list[tuple[int, float, list[tuple[int, float]]]] = []
    for job in (Job(0, other, Sampling(max_tokens=12)), Job(1, text, asked), Job(2, other, GREEDY)):
        runner.add(job)
    ended = 0
    while ended < 3:
        for step in runner.step():
            ended += bool(step.finish)
            assert step.id == 1 or not step.logprobs
            if step.id == 1:
                told += zip(step.tokens, step.logprobs, step.likeliest, strict=True)
    model = AutoModelForCausalLM.from_pretrained(llama.path, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[*text, *(token for token, _, _ in told)]])).logits[0, len(text) - 1 :]
    for given, (token, logprob, likeliest) in zip(logits.log_softmax(-1), told, strict=False):
        assert logprob == pytest.approx(float(given[token]), abs=1e-4)
        assert [other for other, _ in likeliest] == given.topk(3).indices.tolist()
        assert [value for _, value in likeliest] == pytest.approx(given.topk(3).values.tolist(), abs=1e-4)
    assert len(told) > 1


def test_a_seed_gives_the_same_answer_whatever_else_runs(runner: TransformersRunner) -> None:
    """Fails when requests draw from one random stream, as continuous batching has it."""
    text, *others = prompts(30, 3, 90, 12, 55)
    wanted = Job(0, text, Sampling(max_tokens=40, temperature=1.3, seed=11))
    noise = [Job(i, other, Sampling(max_tokens=17 * i, temperature=1.0)) for i, other in enumerate(others, 1)]
    alone = run(runner, [wanted])[0].tokens
    assert run(runner, [*noise[:2], wanted], late=noise[2:])[0].tokens == alone
    assert run(runner, [Job(0, text, Sampling(max_tokens=40, temperature=1.3, seed=12))])[0].tokens != alone


def test_sampled_tokens_follow_the_model_s_distribution(runner: TransformersRunner, llama: ModelFolder) -> None:
    """Fails when temperature, top-k or the draw itself is wrong."""
    (text,) = prompts(25)
    count = 900
    jobs = [Job(i, text, Sampling(max_tokens=1, temperature=2.5, top_k=6, seed=i)) for i in range(count)]
    drawn = [token for step in run(runner, jobs).values() for token in step.tokens]
    model = AutoModelForCausalLM.from_pretrained(llama.path, dtype=torch.float32)
    with torch.no_grad():
        top = (model(torch.tensor([text])).logits[0, -1] / 2.5).topk(6)
    for token, probability in zip(top.indices.tolist(), top.values.softmax(0).tolist(), strict=True):
        if token != 2:
            assert drawn.count(token) / count == pytest.approx(probability, abs=0.05)
    assert set(drawn) <= set(top.indices.tolist())


def test_temperature_zero_and_do_sample_are_obeyed(tmp_path: Path) -> None:
    """Fails when a greedy config samples, when a sampling one does not, or when a request cannot overrule either."""
    (text,) = prompts(30)
    sampling = folder_of(build_llama(tmp_path / "sampling", do_sample=True, temperature=1.5))
    runner = transformers.load(sampling, FLOAT32, "a test")
    greedy = generate(sampling, text, max_new_tokens=24, do_sample=False)
    by_config = [run(runner, [Job(1, text, Sampling(max_tokens=24, seed=seed))])[1].tokens for seed in (1, 1, 2)]
    assert by_config[0] == by_config[1]
    assert by_config[0] != by_config[2]
    assert run(runner, [Job(1, text, GREEDY)])[1].tokens == greedy
    assert run(runner, [Job(1, text, Sampling(max_tokens=24, temperature=1e-9))])[1].tokens == greedy


def test_a_limit_on_what_is_drawn_asks_for_drawing_and_no_limit_does_not(tmp_path: Path) -> None:
    """Fails when a greedy model drops a `top_p` or a `top_k` without a word, or samples for a `top_p` of 1."""
    (text,) = prompts(30)
    runner = transformers.load(folder_of(build_llama(tmp_path / "model", do_sample=False)), FLOAT32, "a test")

    def answer(**asked: Any) -> list[int]:
        return run(runner, [Job(1, text, Sampling(max_tokens=24, **asked))])[1].tokens

    assert answer(top_p=1.0, seed=1) == answer()
    assert answer(top_k=50, seed=1) == answer(temperature=1.0, top_k=50, seed=1) != answer(top_k=50, seed=2)
    assert answer(top_p=0.9, seed=1) == answer(temperature=1.0, top_p=0.9, seed=1) != answer(top_p=0.9, seed=2)
    assert answer(temperature=0.0, top_p=0.5, top_k=9) == answer()


def test_any_of_several_end_tokens_ends_the_answer_unseen(tmp_path: Path, llama: ModelFolder) -> None:
    """Fails when an end token reaches the text, or only the first of a list counts."""
    (text,) = prompts(30)
    plain = generate(llama, text, max_new_tokens=24, do_sample=False)
    folder = folder_of(build_llama(tmp_path / "model", eos_token_id=[2, plain[9]]))
    ended = run(transformers.load(folder, FLOAT32, "a test"), [Job(1, text, GREEDY)])[1]
    assert ended.finish == "stop"
    assert ended.tokens == plain[: plain.index(plain[9])]


def test_the_length_that_the_generation_config_states_is_told(tmp_path: Path, runner: TransformersRunner) -> None:
    """Fails when the model's own limit of an answer reaches nobody, or one is made up."""
    stated = transformers.load(folder_of(build_llama(tmp_path / "model", max_new_tokens=7)), FLOAT32, "a test")
    assert (stated.info.longest_answer, runner.info.longest_answer) == (7, None)


def test_an_answer_ends_where_the_context_does(runner: TransformersRunner) -> None:
    """Fails when a position beyond the model's last is computed."""
    (text,) = prompts(CONTEXT - 3)
    ended = run(runner, [Job(1, text, Sampling(max_tokens=50, temperature=0))])[1]
    assert (ended.finish, len(ended.tokens)) == ("length", 3)


@pytest.mark.parametrize(("prompt", "word"), [([], "no tokens"), ([5] * CONTEXT, "no room"), ([5, 320], "vocabulary")])
def test_a_job_that_cannot_be_served_fails_alone(runner: TransformersRunner, prompt: list[int], word: str) -> None:
    """Fails when a bad prompt raises in the model and takes the batch with it."""
    (good,) = prompts(10)
    ended = run(runner, [Job(1, prompt, GREEDY), Job(2, good, GREEDY)])
    assert word in str(ended[1].error)
    assert ended[2].error is None


def test_cancel_frees_the_cache_at_once(runner: TransformersRunner) -> None:
    """Fails when a closed connection keeps its blocks, or its batch place, for even one step."""
    for i, text in enumerate(prompts(300, 200, 100)):
        runner.add(Job(i, text, Sampling(max_tokens=100, temperature=0)))
    runner.add(Job(9, [5], GREEDY))
    runner.step()
    assert free_cache(runner) < 1
    for job in (0, 1, 2, 9, 77):
        runner.cancel(job)
    assert free_cache(runner) == 1
    assert runner.step() == []


def test_an_id_is_free_again_after_its_job(runner: TransformersRunner, llama: ModelFolder) -> None:
    """Fails when an answer under a used id holds anything of the former one."""
    first, second = prompts(31, 32)
    runner.add(Job(1, first, GREEDY))
    runner.step()
    with pytest.raises(ValueError, match="under way"):
        runner.add(Job(1, second, GREEDY))
    runner.cancel(1)
    expected = generate(llama, second, max_new_tokens=24, do_sample=False)
    assert run(runner, [Job(1, second, GREEDY)])[1].tokens == expected
    assert run(runner, [Job(1, second, GREEDY)])[1].tokens == expected


def test_r03_a_request_whose_scores_are_nan_fails_alone(llama: ModelFolder) -> None:
    """R3. Fails when one request's NaN reaches its neighbours through a shared attention pass."""
    runner = transformers.load(llama, FLOAT32, "a test")
    with torch.no_grad():
        runner._model.get_input_embeddings().weight[NAN_TOKEN] = torch.nan
    texts = prompts(*range(3, 18))
    jobs = [Job(i, text, GREEDY) for i, text in enumerate(texts)]
    clean = run(runner, jobs)
    ended = run(runner, [*jobs[:8], Job(99, [5, NAN_TOKEN, 6], GREEDY), *jobs[8:]])
    assert "finite" in str(ended.pop(99).error)
    assert {i: step.tokens for i, step in ended.items()} == {i: step.tokens for i, step in clean.items()}


@pytest.mark.parametrize("joins", ["at once", "late"])
def test_r03_a_request_that_raises_in_the_model_fails_alone(tmp_path: Path, joins: str) -> None:
    """R3. Fails when an exception in one forward pass ends, or changes, the answers of everyone in it."""

    def refuse(_: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        if FAILING_TOKEN in arguments[0]:
            raise RuntimeError("poison")

    folder = folder_of(build_llama(tmp_path / "model", suppress_tokens=[FAILING_TOKEN]))
    runner = transformers.load(folder, FLOAT32, "a test")
    runner._model.get_input_embeddings().register_forward_pre_hook(refuse)
    texts = prompts(*range(40, 55))
    jobs = [Job(i, text, Sampling(max_tokens=24, temperature=1.0, seed=i)) for i, text in enumerate(texts)]
    clean = run(runner, jobs)
    poison = Job(99, [5, FAILING_TOKEN, 6], GREEDY)
    ended = run(runner, [*jobs[:8], poison, *jobs[8:]]) if joins == "at once" else run(runner, jobs, late=[poison])
    assert "RuntimeError" in str(ended.pop(99).error)
    assert {i: step.tokens for i, step in ended.items()} == {i: step.tokens for i, step in clean.items()}


def test_r22_a_cache_too_small_for_all_serves_all(llama: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """R22. Fails when requests that push one another out of the cache lose tokens, or never end."""
    monkeypatch.setattr(hardware, "cache_bytes", lambda device: 700 * 2 * 2 * 2 * 12 * 4)
    runner = transformers.load(llama, FLOAT32, "a test")
    texts = prompts(*[90 + i for i in range(16)])
    ended = run(runner, [Job(i, text, Sampling(max_tokens=40, temperature=0)) for i, text in enumerate(texts)])
    for i in (0, 7, 15):
        assert ended[i].tokens == generate(llama, texts[i], max_new_tokens=40, do_sample=False)
    assert free_cache(runner) == 1


def crowded(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> tuple[TransformersRunner, list[Job], int]:
    """A runner with a full cache, three jobs that are under way there, and which of them was pushed out and waits."""
    monkeypatch.setattr(hardware, "cache_bytes", lambda device: 700 * 2 * 2 * 2 * 12 * 4)
    runner = transformers.load(folder, FLOAT32, "a test")
    long = Sampling(max_tokens=100, temperature=0)
    jobs = [Job(i, text, long) for i, text in enumerate(prompts(190, 200, 210))]
    for job in jobs:
        runner.add(job)
    scheduler = runner._batch._scheduler
    for _ in range(100):
        assert not any(step.finish for step in runner.step())
        if scheduler.block_new_requests:
            (pushed_out,) = scheduler.waiting_requests
            return runner, jobs, int(pushed_out)
    raise AssertionError("the cache never was full")


def test_who_was_pushed_out_comes_back_when_the_others_are_cancelled(
    llama: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails when a full cache whose answers all end by stop strings or cancels leaves every later job waiting for
    ever."""
    runner, jobs, waiting = crowded(llama, monkeypatch)
    for job in jobs:
        if job.id != waiting:
            runner.cancel(job.id)
    runner.add(Job(9, jobs[0].prompt[:30], GREEDY))
    ended = [step.id for _ in range(200) for step in runner.step() if step.finish]
    assert sorted(ended) == [waiting, 9]


def test_r03_a_pass_that_fails_while_the_cache_is_full_is_searched_to_its_end(
    llama: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3. Fails when the search for the request that raised waits for ever for a scheduler that lets nobody in."""
    runner, jobs, _ = crowded(llama, monkeypatch)
    raised: list[int] = []

    def refuse(_: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        if not raised:
            raised.append(1)
            raise RuntimeError("once")

    runner._model.get_input_embeddings().register_forward_pre_hook(refuse)
    prepare, calls = runner._batch._processor.prepare_next_batch, iter(range(1000))
    monkeypatch.setattr(runner._batch._processor, "prepare_next_batch", lambda: next(calls) >= 0 and prepare())
    ended: dict[int, Step] = {}
    while len(ended) < len(jobs):
        ended |= {step.id: step for step in runner.step() if step.finish or step.error}
    assert raised
    assert {step.error for step in ended.values()} == {None}


def test_the_detokenizer_gives_the_text_back(runner: TransformersRunner) -> None:
    """Fails when a piece of a character is shown, or a space lost."""
    text = 'The hero says "bonjour" 🦸🏽‍♀️ and costs $12.50'
    detokenizer = runner.detokenizer()
    pieces = [detokenizer.push([token]) for token in train_tokenizer().encode(text)]
    assert "".join(pieces) + detokenizer.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("placement", "word"),
    [
        (Placement(dtype="int8"), "int8"),
        (Placement(device="cuda:99"), "cuda:99"),
        (Placement(device="abacus"), "abacus"),
    ],
)
def test_a_placement_this_machine_lacks_is_one_line(llama: ModelFolder, placement: Placement, word: str) -> None:
    """Fails when a wrong setting ends in a traceback."""
    with pytest.raises(ModelError, match=word) as error:
        transformers.load(llama, placement, "a test")
    assert "\n" not in str(error.value)


def test_a_generation_config_that_cannot_be_served_is_refused(tmp_path: Path) -> None:
    """Fails when beams are asked for and silently not searched."""
    folder = folder_of(build_llama(tmp_path / "model", num_beams=4))
    with pytest.raises(ModelError, match="num_beams=4"):
        transformers.load(folder, FLOAT32, "a test")


def test_weights_that_miss_a_tensor_are_refused(tmp_path: Path) -> None:
    """Fails when transformers fills a missing tensor with random numbers and we serve them."""
    path = build_llama(tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="up_proj"):
        transformers.load(folder_of(path), FLOAT32, "a test")
