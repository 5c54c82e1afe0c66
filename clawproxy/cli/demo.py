"""`clawproxy demo`: the gateway and its scripted provider in one process, one prompt through each door, then how to use it.

It needs no key and no network; every part but the provider's words is what `serve` runs.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import click
import trio
from attrs import define
from rich.console import Console
from rich.text import Text

from clawproxy.cli.common import printable
from clawproxy.cli.democlient import Answer, ask_over_http, uses_sdk
from clawproxy.cli.wsclient import Frame, connect
from clawproxy.config import Config, KeyConfig, ModelConfig, ProviderConfig, RouteConfig, SecretRef, ServerConfig
from clawproxy.keys import generate
from clawproxy.ops import logs

if TYPE_CHECKING:
    from clawproxy.secrets import Secret
    from clawproxy.server import Listening

PROMPT = "Say something nice, one token at a time."
MODEL = "demo"
REAL = """\
[providers.openai]
base_url = "https://api.openai.com/v1"
api_key  = "env:OPENAI_API_KEY"
[models."gpt-4o-mini"]
routes   = [{ provider = "openai", model = "gpt-4o-mini" }]
[deadlines]
first_token = "60s"
"""


@click.command("demo")
@click.option("--once", is_flag=True, help="Exit after the demonstration.")
@click.option("--prompt", default=PROMPT, help="What to ask.")
def command(once: bool, prompt: str) -> None:
    """See it work: starts the gateway with a scripted provider, and asks it something over WebSocket and HTTP."""
    logs.setup("error")
    secret = generate()
    try:
        trio.run(Demo(Console(highlight=False), secret, prompt, once).run)
    except* KeyboardInterrupt:
        click.echo()


def configuration(secret: Secret) -> Config:
    """Free ports on loopback, a provider that follows a script, one key."""
    from clawproxy.scripted import DEMO_SCRIPT

    return Config(
        server=ServerConfig(listen=("127.0.0.1:0",), admin="127.0.0.1:0"),
        providers={"scripted": ProviderConfig(dialect="scripted", script=DEMO_SCRIPT)},
        models={MODEL: ModelConfig((RouteConfig("scripted", "demo-model"),))},
        keys={"demo": KeyConfig(SecretRef("", secret.reveal()))},
    )


@define
class Demo:
    console: Console
    secret: Secret
    prompt: str
    once: bool
    column: int = 0
    """Where the answer that is being printed has got to in its line."""

    async def run(self) -> None:
        from clawproxy.server import run

        up = trio.Event()
        told: list[Listening] = []

        def ready(listening: Listening) -> None:
            told.append(listening)
            up.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run, configuration(self.secret), ready=ready, ephemeral=True, signals=False))
            await up.wait()
            [listening] = told
            await self.show(listening)
            if not self.once:
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()

    async def show(self, listening: Listening) -> None:
        base = listening.listen[0]
        self.console.print()
        self.head("ClawProxy", "a gateway between applications and LLM providers")
        self.row("gateway", base)
        self.row("admin", f"{listening.admin}   /healthz /readyz /metrics")
        self.row("provider", "scripted, in this process: no key, no network")
        self.row("prompt", printable(self.prompt))
        self.head("1  Claw WebSocket", f"{base.replace('http', 'ws', 1)}/websocket")
        await self.over_websocket(f"{base.replace('http', 'ws', 1)}/websocket")
        self.head("2  HTTP, as OpenAI speaks it", f"{base}/v1" + ("   with the official openai SDK" if uses_sdk() else ""))
        self.summary(await trio.to_thread.run_sync(self._http, base, abandon_on_cancel=True))
        self.yours(base)

    async def over_websocket(self, url: str) -> None:
        answer = Answer()

        def see(frame: Frame) -> None:
            if frame["type"] == "llm_token":
                answer.token(str(frame.get("content", "")))
                self.token(str(frame.get("content", "")))
            elif frame["type"] == "llm_response_start":
                route = frame.get("route") or {}
                answer.route = f"{frame.get('provider')}/{frame.get('model')}"
                answer.why = f"{route.get('strategy')}, attempt {route.get('attempt')}"
            elif frame["type"] == "llm_response_end":
                answer.outcome = str(frame.get("outcome"))
                usage = frame.get("usage") or {}
                answer.usage = (usage.get("input_tokens"), usage.get("output_tokens"), usage.get("source"))
                answer.gateway_ms = (frame.get("timing_ms") or {}).get("gateway")

        async with connect(url, self.secret) as chat:
            answer.started = time.perf_counter()
            last = await chat.ask(MODEL, [{"role": "user", "content": self.prompt}], see)
            answer.ended = time.perf_counter()
        if last["type"] == "error":
            answer.outcome = f"{last.get('error')}: {last.get('message')}"
        self.summary(answer)

    def _http(self, base: str) -> Answer:
        return ask_over_http(base, self.secret, MODEL, self.prompt, self.token)

    # --- what it looks like ------------------------------------------------------------------------------------------------

    def head(self, title: str, rest: str) -> None:
        self.console.print(Text.assemble("\n", (title, "bold cyan"), "  ", (rest, "dim")), soft_wrap=True)
        self.console.print()

    def row(self, name: str, value: str) -> None:
        self.console.print(Text.assemble("  ", (f"{name:<11}", "dim"), value), soft_wrap=True)

    def token(self, text: str) -> None:
        """As it comes; a word that does not fit begins a line."""
        text = printable(text, lines=True)
        if self.column + len(text) > self.console.width - 2 or not self.column:
            text = ("\n  " if self.column else "  ") + text.lstrip(" ")
            self.column = 0
        self.column = len(text) if self.column == 0 else self.column + len(text)
        self.console.print(text, end="", markup=False, soft_wrap=True)
        self.console.file.flush()

    def summary(self, answer: Answer) -> None:
        self.column = 0
        self.console.print("\n")
        tokens_in, tokens_out, source = answer.usage
        self.row("route", f"{answer.route}   ({answer.why})" if answer.why else answer.route)
        self.row("outcome", printable(answer.outcome))
        self.row("usage", f"{_or_dash(tokens_in)} tokens in, {_or_dash(tokens_out)} out" + (f" ({source})" if source else ""))
        timing = f"first token {answer.first_ms:.0f} ms, whole answer {answer.total_ms:.0f} ms"
        if answer.gateway_ms is not None:
            timing += f"; the gateway's own share {answer.gateway_ms:.1f} ms"
        if answer.sdk:
            timing += " (the SDK's own start included)"
        self.row("timing", timing)

    def yours(self, base: str) -> None:
        self.head("3  Yours", "a real provider: save this as clawproxy.toml")
        for line in REAL.splitlines():
            self.console.print(f"  {line}", markup=False, soft_wrap=True)
        self.console.print("\n  $ clawproxy keys create me     # prints the key, once", markup=False, soft_wrap=True)
        self.console.print("  $ clawproxy serve", markup=False, soft_wrap=True)
        self.console.print("  $ clawproxy chat --key claw_...", markup=False, soft_wrap=True)
        if self.once:
            self.console.print()
            return
        self.head("This one stays up until Ctrl-C.", "try it from another terminal:")
        command_line = f"clawproxy chat --url {base.replace('http', 'ws', 1)}/websocket --key {self.secret.reveal()}"
        self.console.print(f"  $ {command_line}\n", markup=False, soft_wrap=True)


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
