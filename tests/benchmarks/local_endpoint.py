"""A model of a Hugging Face folder behind an OpenAI-like endpoint of this machine, by transformers, for benchmarks.

    python tests/benchmarks/local_endpoint.py --model=FOLDER --port=8001 [--batch=16] [--dtype=bfloat16]

Requests that wait are answered in batches: on a CPU a batch of 16 takes little longer than one. A row that has ended
takes no more part in it. Answers are greedy at temperature 0; the seed of a request is not read, since rows of a batch
share one.
"""

import argparse
import http.server
import json
import queue
import threading
import time
from collections.abc import Callable
from concurrent import futures

import torch
import transformers

GATHER = 0.2  # seconds in which requests come that are answered together


class Model:
    """Completes chats in batches, in a thread of its own.

    Args:
      folder: of the model.
      batch: requests that are answered together at most.
      dtype: of the weights, a name of torch's.
    """

    def __init__(self, folder: str, *, batch: int, dtype: str):
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._batch = batch
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def complete(self, body: dict) -> dict:
        """Returns the reply to a request, after those that came before it."""
        future: futures.Future = futures.Future()
        self._waiting.put((body, future))
        return future.result()

    def _serve(self) -> None:
        left: list = []
        while True:
            left = left or [self._waiting.get()]
            time.sleep(GATHER)
            while not self._waiting.empty():
                left.append(self._waiting.get())
            # Short replies would wait for long ones: those that may be as long go together.
            first, _ = left[0]
            alike = [one for one in left if _kind(one[0]) == _kind(first)][: self._batch]
            taken = {id(one) for one in alike}
            left = [one for one in left if id(one) not in taken]
            try:
                replies = self._generate([body for body, _ in alike])
            except Exception as error:  # noqa: BLE001 - said to those who asked
                replies = [{"error": {"message": f"{type(error).__name__}: {error}"}}] * len(alike)
            for (_, future), reply in zip(alike, replies, strict=True):
                future.set_result(reply)

    @torch.inference_mode()
    def _generate(self, bodies: list[dict]) -> list[dict]:
        began = time.monotonic()
        texts = [
            self._tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
            for body in bodies
        ]
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        pick = _picks(bodies[0].get("temperature", 1.0), bodies[0].get("top_p", 1.0))
        written = self._written(inputs["input_ids"], inputs["attention_mask"], pick, most=bodies[0]["max_tokens"])
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        tokens, seconds = sum(map(len, written)), time.monotonic() - began
        print(f"{len(bodies)} requests: {sum(lengths)} tokens read, {tokens} written, {seconds:.0f} s", flush=True)
        return [self._reply(row, length) for row, length in zip(written, lengths, strict=True)]

    def _written(self, ids: torch.Tensor, mask: torch.Tensor, pick: Callable, *, most: int) -> list[list[int]]:
        """Returns the tokens after each row of prompts, at most so many, the end of a turn included."""
        rows: list[list[int]] = [[] for _ in ids]
        alive = list(range(len(rows)))
        positions, cache = (mask.cumsum(dim=1) - 1).clamp(min=0), transformers.DynamicCache()
        for step in range(most):
            found = self._model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )
            ids = pick(found.logits[:, -1].float())[:, None]
            for row, token in zip(alive, ids[:, 0].tolist(), strict=True):
                rows[row].append(token)
            left = [k for k, row in enumerate(alive) if rows[row][-1] not in self._ends]
            if not left or step + 1 == most:
                break
            if len(left) < len(alive):
                alive, kept = [alive[k] for k in left], torch.tensor(left)
                cache.batch_select_indices(kept)
                ids, mask, positions = ids[kept], mask[kept], positions[kept]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            positions = positions[:, -1:] + 1
        return rows

    @property
    def _ends(self) -> set[int]:
        ended = self._model.generation_config.eos_token_id
        return set(ended if isinstance(ended, list) else [ended])

    def _reply(self, row: list[int], prompt_tokens: int) -> dict:
        text = self._tokenizer.decode(row, skip_special_tokens=True)
        stopped = bool(row) and row[-1] in self._ends
        return {
            "choices": [{"message": {"content": text}, "finish_reason": "stop" if stopped else "length"}],
            "usage": {"completion_tokens": len(row), "prompt_tokens": prompt_tokens},
        }


def _picks(temperature: float, top_p: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what picks a token of each row of logits."""

    def likeliest(logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(dim=-1)

    def drawn(logits: torch.Tensor) -> torch.Tensor:
        p, order = torch.softmax(logits / temperature, dim=-1).sort(dim=-1, descending=True)
        p = p.masked_fill(p.cumsum(dim=-1) - p >= top_p, 0.0)
        return order.gather(-1, torch.multinomial(p, 1))[:, 0]

    return drawn if temperature else likeliest


def _kind(body: dict) -> tuple:
    return body["max_tokens"], body.get("temperature"), body.get("top_p")


class Server(http.server.ThreadingHTTPServer):
    """Answers POST requests by a model."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, model: Model, port: int):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                reply = model.complete(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                data = json.dumps(reply).encode()
                self.send_response(500 if "error" in reply else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", port), Handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    with Server(Model(options.model, batch=options.batch, dtype=options.dtype), options.port) as server:
        print(f"serving {options.model} at http://127.0.0.1:{server.server_port}/v1", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
