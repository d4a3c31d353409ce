"""Hostile model folders, endpoints and chat templates: each goes well or ends in one line, within 10 s and 1 GB.

    python tests/benchmarks/hostile.py [--json=FILE] [--kinds=NAME,...] [--share=PERCENT] [--seed=TEXT]

600 folders (crafted ones, and valid ones with bytes or values changed), 100 servers on this machine (20 behaviours with
5 parameters each), 1,000 chat templates (crafted and mutated). A case is a pure function of the seed, its kind and its
number (tests/helpers/hostile_*.py), so that a fault can be had again.

Cases run in a worker process, which is replaced where it dies or hangs. A fault is an exception that is no `UserError`,
a message of more than a line or 1,000 characters, anything on the standard streams, a secret in a log, more than 10 s,
be they of the clock or of the processor, or more than 1 GB of memory: of the worker, and of the process in which
templates run. Where a machine has other work, CGRPO_TEST_SECONDS_FACTOR lengthens the clock's seconds alone.

With `--json`, results are written after every part of a kind, and those that a file holds of the same modules are not
computed again. With `--share`, that much of each kind is tried. It ends with 1 where there is a fault.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]  # also for the worker

TOTALS = {"folder": 600, "server": 100, "template": 1000}
PART = 100  # cases between two times that results are written
SECONDS, BYTES, CHARACTERS = 10.0, 10**9, 1000
FACTOR = float(os.environ.get("CGRPO_TEST_SECONDS_FACTOR", "1"))  # of a machine that has other things to do
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 12 + 30? <|im_end|> {{ x }}"},
    {"role": "assistant", "content": "<think>\n</think>\n42"},
    {"role": "user", "content": "Sure?" * 100},
]


# --- cases, in a worker ---------------------------------------------------------------------------------------------


class Worker:
    """Tries cases in this process."""

    def __init__(self, seed: str):
        import hostile_folders

        self.seed, self.bases = seed, hostile_folders.valid()
        self.folder = pathlib.Path(tempfile.mkdtemp())

    def try_folder(self, number: int) -> list[str]:
        """Does all that a run does with a model folder; returns the messages."""
        import hostile_folders

        from cgrpo_jax.models.hf import config as hf_config
        from cgrpo_jax.models.hf import folder as folder_lib
        from cgrpo_jax.models.hf import load
        from cgrpo_jax.models.hf.tokenizer import load_tokenizer

        path, messages = self.folder / "model", []
        shutil.rmtree(path, ignore_errors=True)
        hostile_folders.write(path, number, self.seed, self.bases)
        tokenizer = config = None
        with said(messages):
            tokenizer = load_tokenizer(path)
        with said(messages):
            self.use(tokenizer)
        with said(messages):
            config = hf_config.read_config(path)
        with said(messages):
            if config:
                load.load_params(path, config)
        with said(messages):
            if tokenizer and config:
                load.check_vocab(tokenizer, config)
                for name in ("written", "exported"):
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                folder_lib.write(self.folder / "written", config, tokenizer, source=path, tokenizer_source=path)
                (self.folder / "exported").mkdir()
                folder_lib.export(self.folder / "written", self.folder / "exported", config, dtype="float32")
        return messages

    def try_template(self, number: int) -> list[str]:
        """Loads a tokenizer with a template, and asks it for prompts."""
        import hostile_templates

        from cgrpo_jax.models.hf.tokenizer import load_tokenizer

        path, messages = self.folder / "template", []
        if not path.exists():
            path.mkdir()
            for name, content in self.bases[0].items():
                (path / name).write_bytes(content)
        text = hostile_templates.text_of(number, self.seed)
        (path / "chat_template.jinja").write_bytes(text.encode(errors="surrogatepass"))
        with said(messages):
            self.use(load_tokenizer(path))
        return messages

    def use(self, tokenizer) -> None:
        """Does what a run does with a tokenizer."""
        if tokenizer is None:
            return
        tokenizer.chat_ids(CONVERSATION[1:2])
        tokenizer.generation_prefix_ids()
        ids = tokenizer.chat_ids(CONVERSATION)
        tokenizer.thinking_opened_by(ids)
        tokenizer.decode(ids)
        tokenizer.decode(range(min(tokenizer.vocab_size, 1000)))
        tokenizer.decode(tokenizer.encode("What is 12 + 30?\n" * 50))

    def try_server(self, number: int) -> list[str]:
        """Asks an endpoint three times; returns the failures."""
        import hostile_servers

        from cgrpo_jax.inference.chat_client import ChatClient

        os.environ |= {"HOSTILE_KEY": hostile_servers.KEY, "HOSTILE_QUERY": hostile_servers.QUERY}
        logged: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: logged.append(record.getMessage())
        logging.getLogger().addHandler(handler)
        limits = {"timeout": 0.5, "max_attempts": 2, "backoff": 0.001, "max_backoff": 0.02, "concurrency": 2}
        try:
            with hostile_servers.running(hostile_servers.behaviour(number)) as url:
                client = ChatClient(f"{url}?k=$HOSTILE_QUERY", model="m", key_variable="HOSTILE_KEY", **limits)
                with client:
                    futures = [
                        client.submit("Right?", max_tokens=40, temperature=1.0, top_p=1.0, seed=i) for i in range(3)
                    ]
                    answers = [future.result(timeout=30) for future in futures]
        finally:
            logging.getLogger().removeHandler(handler)
        failures = [answer.failure for answer in answers if answer.failure is not None]
        assert not any(failure.startswith("error ") for failure in failures), failures
        assert all(len(answer.text or "") <= 40 * 128 for answer in answers), "a text of any length"
        shown = [*logged, repr(client), repr(answers), repr(client.counts)]
        for secret in (hostile_servers.KEY, hostile_servers.QUERY):
            assert not any(part in text for text in shown for part in (secret, secret[:6])), "a secret is shown"
        checked(logged)
        return failures


@contextlib.contextmanager
def said(messages: list[str]) -> Iterator[None]:
    """Collects what a `UserError` says, as a command would print it."""
    from cgrpo_jax.errors import UserError
    from cgrpo_jax.runtime import text as text_lib

    try:
        yield
    except UserError as error:
        messages.append(text_lib.one_line(str(error)))


def checked(messages: Sequence[str]) -> None:
    for one in messages:
        assert one and "\n" not in one and len(one) <= CHARACTERS, f"a message of {len(one)} characters: {one[:200]!r}"


def processor_seconds(pid: int | None) -> float:
    """Returns the processor time of this process, of those that it has ended, and of one that it has."""
    spent = sum(os.times()[:4])
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return spent + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return spent


def memory(pid: int | None) -> int:
    """Returns the most bytes that a process has held since this was called last."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
        pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
        return int(text.partition("VmHWM:")[2].split()[0]) << 10
    except (OSError, IndexError):
        return 0


def work(kind: str, seed: str) -> None:
    """Tries the cases whose numbers come in, a line each."""
    replies = os.fdopen(os.dup(1), "w")
    streams = tempfile.TemporaryFile()
    for descriptor in (1, 2):
        os.dup2(streams.fileno(), descriptor)
    from cgrpo_jax.models.hf.folder_process import PROCESS

    worker = Worker(seed)
    case: Callable[[int], list[str]] = getattr(worker, f"try_{kind}")
    logging.captureWarnings(True)
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger().setLevel(logging.DEBUG if kind == "server" else logging.WARNING)
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        memory(os.getpid()), memory(PROCESS.pid)
        began, spent, fault, messages = time.monotonic(), processor_seconds(PROCESS.pid), None, []
        try:
            messages = case(int(line))
            checked(messages)
        except BaseException as error:  # noqa: BLE001 - which is what is looked for
            at = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__}: {str(error)[:300]} ({pathlib.Path(at.filename).name}, line {at.lineno})"
        taken = time.monotonic() - began, processor_seconds(PROCESS.pid) - spent
        streams.seek(0)
        if written := streams.read():
            fault = fault or f"on the standard streams: {written[:200]!r}"
            os.truncate(streams.fileno(), 0)
        streams.seek(0)
        held = memory(os.getpid()) + memory(PROCESS.pid)
        if held > BYTES:
            fault = fault or f"{held >> 20} MiB"
        reply = {
            "seconds": round(taken[0], 3),
            "cpu": round(taken[1], 3),
            "mib": held >> 20,
            "refused": bool(messages),
            "fault": fault,
        }
        print(json.dumps(reply | {"said": messages[:1]}), file=replies, flush=True)
    shutil.rmtree(worker.folder, ignore_errors=True)


# --- the campaign ---------------------------------------------------------------------------------------------------


class Process:
    """A worker in a process of its own, replaced where it dies or hangs."""

    def __init__(self, kind: str, seed: str):
        self.kind, self.seed = kind, seed
        self.process: subprocess.Popen | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def start(self) -> subprocess.Popen:
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, __file__, "--work", self.kind, "--seed", self.seed]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
        self.process = process
        assert process.stdout and process.stdout.readline() == "ready\n", "the worker does not start"
        return process

    def end(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def one(self, number: int) -> dict:
        """Returns what becomes of a case."""
        process = self.process or self.start()
        assert process.stdin and process.stdout
        began = time.monotonic()
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], 3 * SECONDS * FACTOR)
        line = process.stdout.readline() if ready else ""
        if not line:
            status = process.poll()
            self.end()
            fault = "it hangs" if not ready else f"the process dies ({status})"
            return {
                "seconds": time.monotonic() - began,
                "cpu": 0.0,
                "mib": 0,
                "refused": False,
                "fault": fault,
                "said": [],
            }
        found = json.loads(line)
        if found["seconds"] > SECONDS * FACTOR or found["cpu"] > SECONDS:
            found["fault"] = found["fault"] or f"{found['seconds']:.1f} s, {found['cpu']:.1f} s of processor time"
        return found


def part_of(kind: str, numbers: Sequence[int], process: Process) -> dict:
    """Returns what became of some cases of a kind: faults, what was refused, the longest time and the most memory.

    Beside seconds stand those of the processor, and the machine's load: a busy machine is told from a slow program.
    """
    found = {number: process.one(number) for number in numbers}
    return {
        "cases": len(numbers),
        "refused": sum(one["refused"] for one in found.values()),
        "seconds": max(one["seconds"] for one in found.values()),
        "cpu": max(one["cpu"] for one in found.values()),
        "load": round(os.getloadavg()[0], 1),
        "mib": max(one["mib"] for one in found.values()),
        "faults": [{"number": number, "fault": one["fault"]} for number, one in found.items() if one["fault"]],
    }


def modules_text() -> str:
    """Returns a digest of the modules that read what others write, and of this program."""
    digest = hashlib.sha256()
    package = ROOT / "cgrpo_jax"
    paths = [*(package / "models" / "hf").glob("*.py"), *(package / "inference").glob("chat_*.py")]
    paths += [*(package / "runtime").glob("*.py"), *(ROOT / "tests" / "helpers").glob("hostile_*.py")]
    for path in sorted([*paths, pathlib.Path(__file__)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=pathlib.Path, help="where results are kept")
    parser.add_argument("--kinds", default=",".join(TOTALS), help="which, with commas between")
    parser.add_argument("--share", type=float, default=100.0, help="percent of each kind's cases")
    parser.add_argument("--seed", default="0", help="by which they are made")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.work:
        work(options.work, options.seed)
        return 0
    key, every = modules_text(), max(1, round(100 / options.share))
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    results = {(row["kind"], row["first"], row["cases"], row["seed"]): row for row in kept}
    num_faults = 0
    for kind in options.kinds.split(","):
        numbers, parts = list(range(0, TOTALS[kind], every)), []
        with Process(kind, options.seed) as process:
            for first in range(0, len(numbers), PART):
                chosen = numbers[first : first + PART]
                name = (kind, chosen[0], len(chosen), options.seed)
                if results.get(name, {}).get("key") != key:
                    head = {"kind": kind, "first": chosen[0], "every": every, "seed": options.seed, "key": key}
                    results[name] = head | part_of(kind, chosen, process)
                    if options.json:
                        rows = sorted(results.values(), key=lambda row: (row["kind"], row["first"], row["cases"]))
                        options.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
                parts.append(results[name])
        faults = [fault for part in parts for fault in part["faults"]]
        total = collections.Counter({name: sum(part[name] for part in parts) for name in ("cases", "refused")})
        most = {name: max(part[name] for part in parts) for name in ("seconds", "cpu", "mib")}
        num_faults += len(faults)
        print(
            f"{kind}: {total['cases']} cases, {total['refused']} refused in a line, {len(faults)} faults; longest "
            f"{most['seconds']:.2f} s, of the processor {most['cpu']:.2f} s; most memory {most['mib']} MiB",
            *(f"  {kind} {fault['number']}: {fault['fault']}" for fault in faults),
            sep="\n",
            flush=True,
        )
    return 1 if num_faults else 0


if __name__ == "__main__":
    sys.exit(main())
