"""The least that a streamed token costs in FastAPI: the last message said back word by word, one frame each.

`python -m bench.peers.typist PORT`. No model, no checks, no cancelling: what Parley's API process spends beyond this is
its own.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

app = FastAPI()


SLOW, SLOW_SECONDS = "slow ", 0.05
"""As the echo engine: a text that begins so is said at 20 words a second."""


async def frames(text: str) -> AsyncIterator[str]:
    """One frame a word, and a turn of the event loop before each, as if it came from elsewhere."""
    words = text.split(" ")
    pause = SLOW_SECONDS if text.startswith(SLOW) else 0.0
    for word in words:
        await asyncio.sleep(pause)
        chunk = {"id": "typist", "model": "typist", "choices": [{"index": 0, "delta": {"content": f"{word} "}}]}
        yield f"data: {json.dumps(chunk)}\n\n"
    usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
    yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"


@app.post("/v1/chat/completions")
async def complete(request: Request) -> StreamingResponse:
    """Says the last message back."""
    body = await request.json()
    return StreamingResponse(frames(body["messages"][-1]["content"]), media_type="text/event-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
