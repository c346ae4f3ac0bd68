"""The exported model, spoken to in bulk through OpenVINO GenAI, as the service does."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

from training.tokenizer import END_ID, START_ID, load_tokenizer, text_of

Message = dict[str, str]


@dataclass(frozen=True)
class Reply:
    """What the model answered: its text, its length in tokens and whether it ended its turn."""

    text: str
    tokens: int
    has_ended: bool


class Speaker:
    """Greedy replies of a model folder. Replies are cut after `limit` tokens."""

    def __init__(self, folder: Path, limit: int = 96) -> None:
        self._tokenizer = load_tokenizer(folder / "tokenizer.json")
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 1
        scheduler.enable_prefix_caching = True
        exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        self._pipeline = genai.ContinuousBatchingPipeline(str(folder / "openvino"), scheduler, "CPU", exact)
        self._config = genai.GenerationConfig(max_new_tokens=limit, eos_token_id=END_ID, do_sample=False)

    def replies(self, talks: list[list[Message]]) -> list[Reply]:
        """The reply to each conversation, whose last message is the user's."""
        prompts = [ov.Tensor(np.array([self.prompt(talk)], np.int64)) for talk in talks]
        results = self._pipeline.generate(prompts, [self._config] * len(prompts))
        return [self._reply(list(result.m_generation_ids[0])) for result in results]

    def prompt(self, talk: list[Message]) -> list[int]:
        """The token ids of a conversation and of the head of the reply; markers in texts are plain text."""
        ids: list[int] = []
        for message in talk:
            ids += [START_ID, *self._ids(f"{message['role']}\n{text_of(message)}"), END_ID, *self._ids("\n")]
        return [*ids, START_ID, *self._ids("assistant\n")]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def _reply(self, ids: list[int]) -> Reply:
        has_ended = bool(ids) and ids[-1] == END_ID
        text = self._tokenizer.decode(ids[:-1] if has_ended else ids, skip_special_tokens=False)
        return Reply(text, len(ids), has_ended)
