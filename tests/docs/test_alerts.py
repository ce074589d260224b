"""Webhook and mail of docs/howto/alerts.md, sent to local servers: once, by rank 0, ending nothing."""

from __future__ import annotations

import ast
import http.server
import re
import socket
import socketserver
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from tests.processes import in_processes

PAGE = Path(__file__).parents[2] / "docs/howto/alerts.md"
HEADLINE = "geometry alarm: The representation has lost 50 % of its dimension"


def of_the_page(name: str, **settings: Any) -> Callable[[gm.Verdict, str], Any]:
    """A function as the page shows it."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    tree = ast.parse("\n".join(blocks))
    tree.body = [part for part in tree.body if isinstance(part, (ast.Import, ast.ImportFrom, ast.FunctionDef))]
    names = dict(settings)
    exec(compile(tree, PAGE.name, "exec"), names)
    return names[name]


def low_from_the_third(series: gm.Series) -> gm.Verdict:
    low = len(series.steps) > 2
    since = int(series.steps[2]) if low else None
    return gm.Verdict(low, series.layer, series.marker, 1.0, 2.0, 0.1, since_step=since, checks=int(low))


def train(*on_alarm: Callable[[gm.Verdict, str], Any]) -> int:
    """A run of five measurements; how many there were."""
    data = TensorDataset(torch.randn(80, 6, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    monitor = gm.GeometryMonitor(
        gm.ProbeSet.from_dataset(data, per_class=20), markers=["dimension"], geometry={"directions": 10},
        panel=gm.Panel(["dimension"], low_from_the_third),
    )  # fmt: skip
    run = gm.MonitoredRun(monitor, on_alarm=on_alarm)
    run.start(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.GeometryDeclineWarning)
        for epoch in range(5):
            run.measure(model, step=10 * (epoch + 1), epoch=epoch)
    return monitor.history.measurements


@contextmanager
def webhook(answer: int = 200) -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server that answers every POST with a status, and what was posted."""
    bodies: list[bytes] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(answer)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with socketserver.TCPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", bodies
        server.shutdown()


@contextmanager
def mail_server() -> Iterator[tuple[int, list[str]]]:
    """The port of a mail server, and the messages that it has taken."""
    messages: list[str] = []

    class Session(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for line in self.rfile:
                command = line[:4].upper()
                if command == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    messages.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 taken\r\n")
                if command == b"QUIT":
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], messages
        server.shutdown()


def in_a_process(rank: int, address: str, mail_port: int) -> int:
    post = of_the_page("post", WEBHOOK=address)
    mail = of_the_page(
        "mail", SENDER=f"rank{rank}@localhost", RECEIVER="you@localhost", MAIL_HOST="127.0.0.1", MAIL_PORT=mail_port
    )
    return train(post, mail)


def test_two_processes_send_one_post_and_one_mail():
    with webhook() as (address, bodies), mail_server() as (port, messages):
        assert in_processes(in_a_process, address, port) == [5, 5]
    (body,), (message,) = bodies, messages
    assert body.decode().startswith(f'{{"text": "{HEADLINE}')
    assert HEADLINE in message.replace("\r\n", " ").replace("=\n", "")
    assert "From: rank0@localhost" in message
    assert "Subject: geometry of penultimate: dimension" in message


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("answer", [500, None], ids=["server error", "nobody there"])
def test_a_webhook_that_fails_ends_no_run_and_keeps_no_other_from_its_alarm(answer):
    texts: list[str] = []
    with webhook(answer or 200) as (address, bodies):
        post = of_the_page("post", WEBHOOK=address if answer else closed_port())
        with pytest.warns(gm.GeomonitorWarning, match="on_alarm failed") as told:
            assert train(post, lambda verdict, text: texts.append(text)) == 5
    assert len([one for one in told if "on_alarm" in str(one.message)]) == 1
    assert len(bodies) == (answer is not None)
    assert len(texts) == 1
