"""A model call through our client beside the bare openai package, both in one run against a server on loopback.

``python benchmarks/model_call.py [--calls N] [--rounds N] [--chunks N] [--prompt-bytes N] [--threads N]``. The server
answers at once, so all that is measured is what stands between the caller and the model. Both sides ask the same
question, in one piece and as a stream; then a client's first call, and calls of several threads at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import openai
from _measure import median_ratio, side_by_side

from necrocode.agent_runner import LLMClient, LLMConfig, Message
from necrocode.agent_runner.clients import _openai_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVER = """
import json, socket, sys
import uvicorn

count = int(sys.argv[1])
text = "".join(f"word{n} " for n in range(count))
about = {"id": "c", "created": 1, "model": "m"}
usage = {"prompt_tokens": 10, "completion_tokens": count, "total_tokens": 10 + count}
message = {"role": "assistant", "content": text}
choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
whole = json.dumps(about | {"object": "chat.completion", "choices": choices, "usage": usage}).encode()

def event(choices, **more):
    chunk = about | {"object": "chat.completion.chunk", "choices": choices} | more
    return b"data: " + json.dumps(chunk).encode() + b"\\n\\n"

def choice(delta, reason=None):
    return [{"index": 0, "delta": delta, "finish_reason": reason}]

events = [event(choice({"content": f"word{n} "})) for n in range(count)]
events += [event(choice({}, "stop")), event([], usage=usage), b"data: [DONE]\\n\\n"]

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    is_stream = body and json.loads(body).get("stream")
    kind = b"text/event-stream" if is_stream else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    for piece in events if is_stream else [whole]:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off")).run([listener])
"""


def main() -> None:
    options = arguments()
    with server(options.chunks) as url:
        prompt = "x" * options.prompt_bytes
        bare = openai.OpenAI(api_key="none", base_url=url, max_retries=0)
        rows = {
            "in one piece": (partial(bare_whole, bare, prompt), partial(ours, url, prompt, stream=False)),
            f"stream of {options.chunks}": (
                partial(bare_stream, bare, prompt),
                partial(ours, url, prompt, stream=True),
            ),
        }
        print(f"{'':>20}{'openai ms':>11}{'ours ms':>9}{'ratio':>7}{'openai CPU ms':>15}{'ours CPU ms':>13}")
        for name, (theirs, mine) in rows.items():
            report(name, theirs, mine, options.calls, options.rounds)
            at_once = [partial(by_threads, call, options.threads) for call in (theirs, mine)]
            report(f"{name}, {options.threads} at once", *at_once, options.calls, options.rounds)
        report("a new client", partial(bare_new, url, prompt), partial(ours_new, url, prompt), 1, options.rounds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=30, help="calls in each round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--prompt-bytes", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=8)
    return parser.parse_args()


@contextmanager
def server(chunks: int) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(chunks)], stdout=subprocess.PIPE, text=True)
    port = process.stdout.readline().strip() if process.stdout is not None else ""
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(url, data=json.dumps({}).encode()).read()
                break
            except OSError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def report(name: str, theirs: Callable[[], object], mine: Callable[[], object], calls: int, rounds: int) -> None:
    cpu: dict[str, list[float]] = {"theirs": [], "mine": []}

    def repeated(side: str, call: Callable[[], object]) -> None:
        start = time.process_time()
        for _ in range(calls):
            call()
        cpu[side].append((time.process_time() - start) / calls)

    seconds = side_by_side(
        {"theirs": partial(repeated, "theirs", theirs), "mine": partial(repeated, "mine", mine)}, rounds
    )
    wall = {side: statistics.median(values) / calls * 1000 for side, values in seconds.items()}
    used = {side: statistics.median(values[1:]) * 1000 for side, values in cpu.items()}
    print(
        f"{name:>20}{wall['theirs']:11.2f}{wall['mine']:9.2f}{median_ratio(seconds, 'mine', 'theirs'):7.2f}"
        f"{used['theirs']:15.2f}{used['mine']:13.2f}"
    )


def bare_whole(client: openai.OpenAI, prompt: str) -> str:
    answer = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": prompt}], max_tokens=100, timeout=30
    )
    return answer.choices[0].message.content or ""


def bare_stream(client: openai.OpenAI, prompt: str) -> str:
    stream = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": prompt}],
        max_tokens=100,
        timeout=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def bare_new(url: str, prompt: str) -> str:
    with openai.OpenAI(api_key="none", base_url=url, max_retries=0) as client:
        return bare_whole(client, prompt)


def ours(url: str, prompt: str, *, stream: bool) -> str:
    model = LLMClient(LLMConfig(endpoint=url, model="m", timeout_seconds=30, max_tokens=100, stream=stream))
    return model.complete([Message(role="user", content=prompt)]).text


def ours_new(url: str, prompt: str) -> str:
    _openai_connection._clients.forget()  # noqa: SLF001  as in a process that has asked nothing yet
    return ours(url, prompt, stream=False)


def by_threads(call: Callable[[], object], count: int) -> None:
    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
