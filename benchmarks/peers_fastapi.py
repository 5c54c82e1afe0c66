"""A WebSocket gateway as one would write it in an afternoon: FastAPI, uvicorn and the openai SDK, one frame a token.

It speaks as much of the Claw protocol as the load generator needs: a key check, and no policy, budget, ledger or audit. It runs
in an environment of its own (see peers.py).
"""

from __future__ import annotations

import os
import sys

import uvicorn  # type: ignore[import-not-found,unused-ignore]
from fastapi import FastAPI, WebSocket, WebSocketDisconnect  # type: ignore[import-not-found,unused-ignore]
from openai import AsyncOpenAI

app = FastAPI()
client = AsyncOpenAI(base_url=os.environ.get("UPSTREAM", "http://127.0.0.1:9/v1"), api_key="sk-none")


@app.websocket("/websocket")
async def gateway(socket: WebSocket) -> None:
    await socket.accept()
    try:
        first = await socket.receive_json()
        if first.get("type") != "auth" or first.get("token") != os.environ["BENCH_KEY"]:
            await socket.close(4401)
            return
        await socket.send_json({"type": "auth_ok"})
        while True:
            frame = await socket.receive_json()
            ident = frame.get("id")
            await socket.send_json({"type": "llm_response_start", "id": ident})
            stream = await client.chat.completions.create(
                model=frame["model"],
                messages=[{"role": "user", "content": frame["prompt"]}],
                max_tokens=frame["parameters"]["max_tokens"],
                stream=True,
            )
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    await socket.send_json({"type": "llm_token", "id": ident, "content": chunk.choices[0].delta.content})
            await socket.send_json({"type": "llm_response_end", "id": ident})
    except WebSocketDisconnect:
        return


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
