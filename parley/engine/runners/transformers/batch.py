"""transformers' continuous batching, stepped from outside.

Its manager runs a thread of its own and talks through queues. Neither is used here: `Batch` drives the manager's batch
processor itself, so that adding, cancelling and decoding happen on one thread and take effect at once.

Rules that always hold:
1. A request is in exactly one place: waiting or active in the scheduler, or among the suspects or the cleared here.
2. Suspects and cleared requests hold no cache; they are prefilled again, which prefix sharing makes cheap.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching import ContinuousBatchingManager, RequestState, RequestStatus
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from parley.engine.hardware import cache_blocks
from parley.engine.runner import Placement
from parley.engine.runners import hardware
from parley.engine.runners.transformers import attention
from parley.engine.runners.transformers.sampler import Sampler

_PAGE = 32
"""Tokens a cache block. Only whole blocks are shared between prompts, so small ones share more."""
_STEP_TOKENS = 1024
"""Most tokens a step; a longer prompt is prefilled in several, beside the others' decoding."""

_MASKS = 2
"""Most attention masks of a step: one for layers that see everything, one for those with a sliding window."""


@dataclass(frozen=True)
class Progress:
    """What one step did for one request: a token, or an error that ended it."""

    id: str
    token: int | None = None
    finished: bool = False
    cached: int | None = None
    """Prompt tokens found in the cache; given with each token."""
    error: str | None = None


class Batch:
    """Requests decoded together.

    Args:
        model: decoder-only, on its device.
        sampler: chooses the tokens.
        placement: how many requests are in one step, and how much memory the cache takes.
        context: most tokens of one request.

    Raises:
        ValueError, MemoryError: when the model's attention or the memory does not allow a cache.
    """

    def __init__(self, model: Any, sampler: Sampler, placement: Placement, context: int) -> None:
        self._model = model
        self._processor = _processor(model, sampler, placement, context)
        self._scheduler = self._processor.scheduler
        self._cached: dict[str, int] = {}
        self._suspects: deque[RequestState] = deque()
        self._cleared: list[RequestState] = []

    @property
    def capacity(self) -> int:
        """Tokens that the cache holds."""
        return int(self._processor.cache.num_blocks) * _PAGE

    def add(self, request_id: str, prompt: list[int], limit: int, eos: list[int]) -> None:
        """Queues a request for up to `limit` tokens, ended earlier by any of `eos`."""
        self._scheduler.add_waiting_request(
            RequestState(request_id, list(prompt), max_new_tokens=limit, eos_token_id=eos)
        )

    def cancel(self, request_id: str) -> None:
        """Forgets a request and frees its blocks at once."""
        if request_id in self._scheduler.active_requests:
            self._release(request_id)
        self._scheduler.set_request_cancellation(request_id)
        self._scheduler.clear_cancelled_requests()
        self._suspects = deque(state for state in self._suspects if state.request_id != request_id)
        self._cleared = [state for state in self._cleared if state.request_id != request_id]
        self._cached.pop(request_id, None)

    def step(self) -> list[Progress]:
        """One forward pass, or the search for the request that made the last one fail."""
        if self._suspects:
            return self._try_alone(self._suspects.popleft())
        for state in self._cleared:
            self._scheduler.add_waiting_request(state)
        self._cleared.clear()
        return self._pass()

    def _pass(self) -> list[Progress]:
        if not self._processor.prepare_next_batch():
            return []
        requests = list(self._processor.inputs_and_outputs.requests_in_batch)
        for request in requests:
            self._cached.setdefault(request.state.request_id, request.state.position_offset - request.query_length)
        try:
            self._forward()
        except Exception as error:  # noqa: BLE001 - any request may be the cause, with any exception; the others must not pay for it
            return self._suspect_all(error)
        return list(self._advance(requests))

    @torch.no_grad()
    def _forward(self) -> None:
        processor = self._processor
        inputs = processor.inputs_and_outputs.get_model_kwargs(use_padding=processor.model_runner.pad_inputs)
        processor.model_runner.compute_batch(self._model, inputs)
        processor.inputs_and_outputs.retrieve_device_outputs()

    def _advance(self, requests: list[Any]) -> Iterator[Progress]:
        """Takes the new tokens into the requests' state; requests still in prefill have none."""
        _, tokens, _ = self._processor.inputs_and_outputs.prepare_batch_update()
        self._processor.update_batch()
        self._processor.output_router.output_queue.queue.clear()  # finished requests, copied there for a thread
        states = [request.state for request in requests if request.has_new_token]
        for state, token in zip(states, tokens, strict=False):
            finished = state.status == RequestStatus.FINISHED
            cached = self._cached.pop(state.request_id) if finished else self._cached[state.request_id]
            yield Progress(state.request_id, token, finished, cached)

    def _release(self, request_id: str) -> None:
        """Takes an active request out and frees its blocks.

        A scheduler whose cache was full lets nobody in until an answer ends, and counts only those that it ends itself:
        without the last line, all who wait would wait for ever once the others are cancelled.
        """
        self._scheduler.finish_request(request_id)
        self._scheduler.block_new_requests = False

    def _suspect_all(self, error: Exception) -> list[Progress]:
        """Takes every active request out; with only one, it is the culprit and fails."""
        states = list(self._scheduler.active_requests.values())
        for state in states:
            self._release(state.request_id)
        if len(states) == 1:
            self._cached.pop(states[0].request_id, None)
            return [Progress(states[0].request_id, error=f"the model failed ({type(error).__name__})")]
        self._suspects.extend(state.create_equivalent_initial_request() for state in states)
        return []

    def _try_alone(self, suspect: RequestState) -> list[Progress]:
        """Prefills one request with no other near it, up to its next token or its error."""
        scheduler = self._scheduler
        aside = scheduler.waiting_requests, scheduler.waiting_requests_order
        scheduler.waiting_requests, scheduler.waiting_requests_order = {}, deque()
        scheduler.add_waiting_request(suspect)
        progress: list[Progress] = []
        while not progress:
            progress = self._pass()
        scheduler.waiting_requests, scheduler.waiting_requests_order = aside
        for state in list(scheduler.active_requests.values()):
            self._release(state.request_id)
            self._cleared.append(state.create_equivalent_initial_request())
        return progress


def _processor(model: Any, sampler: Sampler, placement: Placement, context: int) -> Any:
    """The manager's batch processor, with `sampler` in place of its logits processors and no thread."""
    config = ContinuousBatchingConfig(
        page_size=_PAGE,
        num_blocks=_blocks(model, placement, context),
        max_batch_tokens=_STEP_TOKENS,
        max_requests_per_batch=placement.max_batch,
        max_memory_percent=0.9,
        use_async_batching=False,
        use_cuda_graph=False,  # a captured graph would replay one batch's random numbers
        auto_switch_to_flash=False,  # it may download a kernel
    )
    # The sampler leaves its choice as the maximum of each row, for the processor's argmax to take.
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1)
    manager = ContinuousBatchingManager(model, greedy, config)
    manager.logit_processor = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([sampler]))
    manager.logit_processor.tensors_required = 1
    if model.config._attn_implementation == "sdpa" and attention.fits(model.config):
        model.set_attn_implementation(attention.NAME)
    manager.warmup()
    return manager.batch_processor


def _blocks(model: Any, placement: Placement, context: int) -> int:
    """Blocks of the cache; fewer than the model's context takes shorten what a conversation may have."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = 2 * config.num_hidden_layers * heads * width
    longest, memory = ceil(context / _PAGE) + 1, hardware.cache_bytes(model.device)
    if model.device.type == "cuda":
        # transformers refuses a cache without room for what reading a token of it takes: copies of keys and values in
        # one layer, and a place in the masks (`PagedAttentionMemoryHandler`).
        reading = (2 * config.num_attention_heads + heads) * width + _MASKS * _STEP_TOKENS
        memory = memory * kept // (kept + reading)
    return cache_blocks(
        kept * model.dtype.itemsize * _PAGE, longest, placement.max_batch, memory, placement.cache_bytes
    )
