"""A decoupled ``ensemble`` that answers with its prompt, word by word and over again, and leads an MPI world."""

import importlib.util
import json
import os
import threading
import time

import numpy as np
import triton_python_backend_utils as pb
from mpi4py import MPI

PAUSE = 0.02


class TritonPythonModel:
    def initialize(self, args):
        print("model sees triton:", importlib.util.find_spec("triton"), flush=True)
        self.kind = json.loads(args["model_config"])["parameters"]["kind"]["string_value"]
        if self.kind == "broken":
            raise ValueError("this model is broken on purpose")
        self.world = MPI.COMM_WORLD
        self.world.barrier()
        print("model process", os.getpid(), "is rank", self.world.rank, "of", self.world.size, flush=True)

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request,), daemon=True).start()

    def answer(self, request):
        inputs = {tensor.name(): tensor.as_numpy().reshape(-1) for tensor in request.inputs()}
        sender = request.get_response_sender()
        text = inputs["text_input"][0].decode()
        final = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if text == "fail" or self.kind == "refuses":
            sender.send(pb.InferenceResponse(error=pb.TritonError("told to fail")), flags=final)
            return
        if text == "inputs":
            text = " ".join(f"{name}={_plain(value)}" for name, value in sorted(inputs.items()))
        words = text.split(" ")
        for index in range(int(inputs["max_tokens"][0])):
            if sender.is_cancelled():
                print("cancelled", request.request_id(), flush=True)
                break
            word = words[index % len(words)] + " "
            sender.send(pb.InferenceResponse([pb.Tensor("text_output", np.array([[word.encode()]], dtype=object))]))
            time.sleep(PAUSE)
        sender.send(flags=final)

    def finalize(self):
        if self.kind == "hangs":
            time.sleep(60)
        for rank in range(1, self.world.size):
            self.world.send(None, dest=rank)


def _plain(values):
    return ",".join(value.decode() if isinstance(value, bytes) else str(value) for value in values)
