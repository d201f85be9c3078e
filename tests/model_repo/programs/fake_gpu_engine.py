"""A fake of TensorRT-LLM's C++ backend: it answers with the prompt's own tokens, one by one where they stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers with as few tensors as the real one may."""

    def execute(self, requests: list[Any]) -> None:
        """Answer each request."""
        for request in requests:
            sender = request.get_response_sender()
            given = {tensor.name(): tensor.as_numpy().reshape(-1) for tensor in request.inputs()}
            ids = given["input_ids"].tolist()
            for part in [[index] for index in ids] if given.get("streaming") else [ids]:
                tokens = np.array([[part]], dtype=np.int32)
                length = np.array([[len(part)]], dtype=np.int32)
                tensors = [pb_utils.Tensor("output_ids", tokens), pb_utils.Tensor("sequence_length", length)]
                sender.send(pb_utils.InferenceResponse(tensors))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
