"""The GPU tool chains that Shardyard builds with, as data.

An engine is bound to the exact TensorRT-LLM and TensorRT versions and to the GPU's architecture, so an engine is built
in the image that serves it. The rows are those of Triton's compatibility matrix (server, docs/introduction/
compatibility.md): an image of month N carries an older CUDA than the release notes of that month say. Architectures
are by SM number.

Two pins, and no floating tag: 25.10 is the last image with CUDA 12, from before the engine path was deprecated; 26.07
is the last image that has the engine path at all, and the first choice for Blackwell. 25.11 and 26.03 carry release
candidates under other names and are left out on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.errors import PipelineError

__all__ = ["PINS", "ToolChain", "choose_toolchain"]

_REPOSITORY = "nvcr.io/nvidia/tritonserver"


@dataclass(frozen=True)
class ToolChain:
    """One image and what it holds; ``architectures`` are SM numbers.

    ``driver`` is the listed driver's major version. Data-centre GPUs also run it with older drivers of the same CUDA
    major version, down to ``least_driver``.
    """

    release: str
    tensorrt_llm: str
    tensorrt: str
    cuda: str
    driver: int
    least_driver: int
    python: str
    architectures: tuple[int, ...]

    @property
    def image(self) -> str:
        """The image's name and tag."""
        return f"{_REPOSITORY}:{self.release}-trtllm-python-py3"

    def describe(self) -> dict[str, str]:
        """Return what a manifest records and compares."""
        return {"image": self.image, "tensorrt_llm": self.tensorrt_llm, "tensorrt": self.tensorrt, "cuda": self.cuda}

    def __str__(self) -> str:
        """Return one line."""
        parts = f"TensorRT-LLM {self.tensorrt_llm}, TensorRT {self.tensorrt}, CUDA {self.cuda}, Python {self.python}"
        return f"{self.image} ({parts}, driver ≥ {self.driver})"


#: By release, in the order in which ``auto`` tries them.
PINS = {
    chain.release: chain
    for chain in (
        ToolChain("25.10", "1.0.0", "10.11.0.33", "12.9.1", 575, 525, "3.12.3", (80, 86, 89, 90)),
        ToolChain("26.07", "1.2.1", "10.14.1.48", "13.1.0", 590, 580, "3.12.3", (80, 86, 89, 90, 100, 103, 120)),
    )
}


def choose_toolchain(name: str, sm: int) -> ToolChain:
    """Return the pin called ``name``, or for ``auto`` the first that supports architecture ``sm``.

    Raises:
        PipelineError: the pin, or every pin, lacks kernels for this architecture.
    """
    able = [chain for chain in PINS.values() if sm in chain.architectures]
    chosen = able if name == "auto" else [PINS[name]]
    if chosen and chosen[0] in able:
        return chosen[0]
    subject = f"engine.toolchain={name}" if name != "auto" else "no tool chain"
    supported = ", ".join(f"{chain.release}: SM {' '.join(map(str, chain.architectures))}" for chain in PINS.values())
    raise PipelineError(
        f"{subject} {'does not support' if name != 'auto' else 'supports'} SM {sm}",
        why=f"supported architectures: {supported}",
        fix=f"set engine.toolchain to {able[0].release}" if able else "build for another GPU",
    )
