"""The Triton model ``tensorrt_llm_bls`` around TensorRT-LLM's C++ backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shardyard.errors import RequestError
from shardyard.model_repo.ensemble import STEPS
from shardyard.model_repo.gpu_steps import GPU_STEPS
from shardyard.model_repo.models import bls
from shardyard.model_repo.models.answer import Arrays
from shardyard.model_repo.models.chain import Chain
from shardyard.model_repo.models.chunk_numbers import number_chunks
from shardyard.model_repo.models.client import Client
from shardyard.model_repo.models.inner_names import InnerNames, named_by_id

__all__ = ["TritonPythonModel"]

#: Inputs of upstream's model for pictures, videos and a draft model.
_REFUSED = (
    "image_input",
    "image_bytes_input",
    "image_url_input",
    "image_sizes_input",
    "video_bytes_input",
    "num_draft_tokens",
    "use_draft_logits",
)


class GpuChain(Chain):
    """The chain around an engine that does not number its chunks: here they are numbered for it."""

    steps = (*GPU_STEPS[:2], STEPS[2])

    def run(self, tensors: Arrays, client: Client) -> Iterator[Arrays]:
        """Yield the responses, without the empty last chunk if it brought no more text."""
        for answer in super().run(tensors, client):
            if len(answer) > 1 or answer["text_output"].reshape(-1)[0]:
                yield answer

    def names(self, client: Client) -> InnerNames:
        """Return names that the C++ backend can tell apart and stop."""
        return named_by_id(client)

    def numbered(self, tensors: Arrays, answers: Iterable[Arrays]) -> Iterable[Arrays]:
        """Number the chunks of an answer that streams."""
        streams = "stream" in tensors and bool(tensors["stream"].reshape(-1)[0])
        return number_chunks(answers) if streams else answers


class TritonPythonModel(bls.TritonPythonModel):
    """Any number of responses for each request, as they come."""

    def make_chain(self) -> Chain:
        """Return the chain around the C++ backend."""
        return GpuChain()

    def check(self, tensors: Arrays) -> None:
        """Refuse pictures, videos and draft models.

        Raises:
            RequestError: the request has one of them.
        """
        for name in _REFUSED:
            if name in tensors:
                raise RequestError(
                    f"{name} is not done here", "this endpoint answers text with one engine", "leave it out"
                )
