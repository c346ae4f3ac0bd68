"""What one writes first: FastAPI, `model.generate` in the handler, one request after the other.

`python -m bench.peers.plain MODEL PORT`. An answer comes in one piece; asked for a stream, it is a stream of one piece,
so that the same client can read it.
"""

import json
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer


def create_app(folder: str) -> FastAPI:
    """The server of one model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder_decoder = AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    model = kind.from_pretrained(folder)
    app = FastAPI()

    def encode(messages: list[dict[str, str]]) -> Any:
        if encoder_decoder:
            text = "  ".join(message["content"] for message in messages)
            return tokenizer(text, return_tensors="pt", truncation=True, return_token_type_ids=False)
        options = {"return_tensors": "pt", "return_dict": True}
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        inputs = encode(body["messages"])
        asked = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=body["max_tokens"])[0]
        new = output[1 if encoder_decoder else asked :]
        text = tokenizer.decode(new, skip_special_tokens=True)
        usage = {"prompt_tokens": asked, "completion_tokens": len(new), "total_tokens": asked + len(new)}
        return _answer(text, usage, body.get("stream", False))

    return app


def _answer(text: str, usage: dict[str, int], stream: bool) -> Response:
    choice = {"index": 0, "finish_reason": "length", "delta" if stream else "message": {"content": text}}
    body = {"id": "plain", "model": "plain", "choices": [choice], "usage": usage}
    if not stream:
        return JSONResponse(body)
    return Response(f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n", media_type="text/event-stream")


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
