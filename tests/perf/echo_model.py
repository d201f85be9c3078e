"""A Triton model that answers with a word at a set interval: what the load generator is tried and measured against.

It takes the ensemble's tensors and answers as a decoupled model does, one response per token, on a clock of its own.
When it sent each response goes to a file, so that a test can tell what the client added.
"""

import json
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Parameters: first_ms, interval_ms between tokens, word, fail_every (0: never), fail_after tokens, sent_file."""

    def initialize(self, args):
        given = json.loads(args["model_config"])["parameters"]
        text = {name: entry["string_value"] for name, entry in given.items()}
        self.first_s = float(text["first_ms"]) / 1e3
        self.interval_s = float(text["interval_ms"]) / 1e3
        self.word, self.sent_file = text["word"], Path(text["sent_file"])
        self.fail_every, self.fail_after = int(text["fail_every"]), int(text["fail_after"])
        self.count = 0
        self.lock = threading.Lock()

    def execute(self, requests):
        for request in requests:
            self.count += 1
            fails = bool(self.fail_every) and self.count % self.fail_every == 0
            tokens = int(pb_utils.get_input_tensor_by_name(request, "max_tokens").as_numpy().item())
            prompt = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().item().decode()
            task = (request.get_response_sender(), prompt, tokens, fails)
            threading.Thread(target=self.answer, args=task, daemon=True).start()

    def answer(self, sender, prompt, tokens, fails):
        start = time.perf_counter()
        sent = []
        for index in range(min(tokens, self.fail_after) if fails else tokens):
            due = start + self.first_s + index * self.interval_s
            time.sleep(max(0.0, due - time.perf_counter()))
            word = self.word if index else self.word.strip()
            output = pb_utils.Tensor("text_output", np.array([[word]], dtype=object))
            sent.append(time.perf_counter_ns())
            sender.send(pb_utils.InferenceResponse([output]))
        if fails:
            error = pb_utils.TritonError("this model fails on purpose")
            sender.send(pb_utils.InferenceResponse(error=error))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        with self.lock, self.sent_file.open("a") as file:
            file.write(json.dumps({"prompt": prompt, "sent_ns": sent}) + "\n")
