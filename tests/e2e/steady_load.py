"""Steady writes and reads against a Tenant, from a pod beside it: run as a program there, stopped by a file.

Every request is tried twice at most, with the pause that the service asks for. What still fails is a failure. A write
carries an idempotency key, and a read asks for the newest token of its writer and counts that writer's rows: fewer
than were acknowledged would be a lost write. Prints one JSON object a second, the last one is the result.
"""

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request

INGEST, QUERY, KEY, STOP = sys.argv[1:5]
WRITERS = 2
PAUSE_S = 0.02


class Load:
    """What all threads count in."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.acked = [0] * WRITERS
        self.token = [""] * WRITERS
        self.reads = 0
        self.retries = 0
        self.failures: list[str] = []

    def call(self, url: str, body: object) -> dict:
        """One request, and once more when it was refused for now or its answer was lost."""
        first = ""
        for attempt in range(2):
            pause_s = 1.0
            try:
                return send(url, body)
            except urllib.error.HTTPError as error:
                text = error.read().decode(errors="replace")
                pause_s = float(error.headers.get("Retry-After", 1))
                problem = f"{error.code} {text}"
            except (OSError, ValueError) as error:
                problem = repr(error)
            if not attempt:
                first = problem
                with self.lock:
                    self.retries += 1
                time.sleep(pause_s)
        with self.lock:
            self.failures.append(f"{url}: {first}; then {problem}")
        return {}

    def write(self, writer: int) -> None:
        number = self.acked[writer] + 1
        record = {
            "idempotency_key": f"{writer}-{number}",
            "payload": {"writer": writer, "number": number},
        }
        answer = self.call(f"{INGEST}/v1/ingest/orders", {"records": [record]})
        if answer:
            self.token[writer] = answer["max_visibility_token"]
            self.acked[writer] = number

    def read(self, writer: int, door: str) -> None:
        acked, token = self.acked[writer], self.token[writer]
        if not token:
            return
        sql = f"SELECT count(*), count(DISTINCT number) FROM orders WHERE writer = {writer}"
        body = {"sql": sql, "min_visibility_token": token, "consistency_timeout_ms": 20_000}
        answer = self.call(f"{door}/v1/query", body)
        if not answer:
            return
        ((rows, distinct),) = answer["rows"]
        with self.lock:
            self.reads += 1
            if rows != distinct or rows < acked:
                self.failures.append(
                    f"{acked} acknowledged, but {rows} rows of {distinct} numbers read"
                )

    def state(self) -> str:
        with self.lock:
            return json.dumps(
                {
                    "acked": self.acked,
                    "token": self.token,
                    "reads": self.reads,
                    "retries": self.retries,
                    "failures": self.failures,
                }
            )


def send(url: str, body: object) -> dict:
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def main() -> None:
    load = Load()

    def until_stopped(step, *args) -> None:
        while not os.path.exists(STOP):
            step(*args)
            time.sleep(PAUSE_S)

    steps = [(load.write, writer) for writer in range(WRITERS)]
    steps += [(load.read, 0, INGEST), (load.read, 1, QUERY)]
    threads = [threading.Thread(target=until_stopped, args=step) for step in steps]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        print(load.state(), flush=True)
        time.sleep(1)
    print(load.state(), flush=True)


if __name__ == "__main__":
    main()
