"""Machines that engines are built for: GPUs and EC2 instances as data.

Memory is what the driver and the EC2 API report, in MiB, not the marketing figure. Sources, read in 2026:
``describe-instance-types`` (memory, GPUs per instance, links), NVIDIA's CUDA GPU list (compute capability),
TensorRT-LLM's auto_parallel/cluster_info.py and stas00/ml-engineering (bandwidth).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from shardyard.engine_spec import EngineSpec
from shardyard.errors import PipelineError

__all__ = ["GPUS", "INSTANCES", "Gpu", "Instance", "Machine", "find_machine"]


@dataclass(frozen=True)
class Gpu:
    """One GPU: ``sm`` is ten times the compute capability, memory in MiB, bandwidth in GB/s (None: not published)."""

    name: str
    sm: int
    memory_mib: int
    bandwidth: int | None

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return self.memory_mib << 20


@dataclass(frozen=True)
class Instance:
    """An EC2 instance: how many GPUs of which kind, and what links them."""

    gpu: str
    gpus: int
    link: str


@dataclass(frozen=True)
class Machine:
    """What the pipeline file names. ``gpus`` None: a GPU was named, not how many of them there are."""

    name: str
    gpu: Gpu
    gpus: int | None
    link: str | None

    def __str__(self) -> str:
        """Return one line: name, GPUs, architecture, memory."""
        count = f"{self.gpus} × " if self.gpus else ""
        link = f", {self.link}" if self.link and self.link != "none" else ""
        return f"{self.name}: {count}{self.gpu.name}, SM {self.gpu.sm}, {self.gpu.memory_mib} MiB each{link}"


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100-40GB", 80, 40960, 1555),
        Gpu("A100-80GB", 80, 81920, 2039),
        Gpu("A10G", 86, 22888, 600),
        Gpu("L4", 89, 22888, 300),
        Gpu("L40S", 89, 45776, 864),
        Gpu("H100", 90, 81920, 3350),
        Gpu("H200", 90, 144384, 4800),
        Gpu("B200", 100, 183359, 8000),
        Gpu("B300", 103, 275040, 8000),
        Gpu("RTX-PRO-6000", 120, 98304, None),
    )
}

_NVSWITCH = "NVSwitch"
INSTANCES = {
    "p4d.24xlarge": Instance("A100-40GB", 8, _NVSWITCH),
    "p4de.24xlarge": Instance("A100-80GB", 8, _NVSWITCH),
    "p5.4xlarge": Instance("H100", 1, "none"),
    "p5.48xlarge": Instance("H100", 8, _NVSWITCH),
    "p5e.48xlarge": Instance("H200", 8, _NVSWITCH),
    "p5en.48xlarge": Instance("H200", 8, _NVSWITCH),
    "p6-b200.48xlarge": Instance("B200", 8, _NVSWITCH),
    "p6-b300.48xlarge": Instance("B300", 8, _NVSWITCH),
    "g5.xlarge": Instance("A10G", 1, "none"),
    "g5.12xlarge": Instance("A10G", 4, "PCIe 4"),
    "g5.24xlarge": Instance("A10G", 4, "PCIe 4"),
    "g5.48xlarge": Instance("A10G", 8, "PCIe 4"),
    "g6.xlarge": Instance("L4", 1, "none"),
    "g6.12xlarge": Instance("L4", 4, "PCIe 4"),
    "g6.24xlarge": Instance("L4", 4, "PCIe 4"),
    "g6.48xlarge": Instance("L4", 8, "PCIe 4"),
    "g6e.xlarge": Instance("L40S", 1, "none"),
    "g6e.12xlarge": Instance("L40S", 4, "PCIe 4"),
    "g6e.24xlarge": Instance("L40S", 4, "PCIe 4"),
    "g6e.48xlarge": Instance("L40S", 8, "PCIe 4"),
    "g7e.2xlarge": Instance("RTX-PRO-6000", 1, "none"),
    "g7e.12xlarge": Instance("RTX-PRO-6000", 2, "PCIe 5"),
    "g7e.24xlarge": Instance("RTX-PRO-6000", 4, "PCIe 5"),
    "g7e.48xlarge": Instance("RTX-PRO-6000", 8, "PCIe 5"),
}


def find_machine(engine: EngineSpec) -> Machine:
    """Return the machine that engine.instance or engine.gpu names.

    Raises:
        PipelineError: neither is given, a name is unknown, or the two contradict each other.
    """
    if engine.instance is None and engine.gpu is None:
        raise PipelineError(
            f"engine.target={engine.target} needs to know the machine",
            why="an engine is bound to the GPU's architecture and planned for its memory",
            fix="set engine.instance (for example p5.48xlarge) or engine.gpu (for example H100)",
        )
    if engine.instance is None:
        gpu = GPUS[_known("engine.gpu", str(engine.gpu), list(GPUS))]
        return Machine(gpu.name, gpu, None, None)
    name = _known("engine.instance", engine.instance.removeprefix("ml."), list(INSTANCES))
    instance = INSTANCES[name]
    if engine.gpu is not None and _known("engine.gpu", engine.gpu, list(GPUS)) != instance.gpu:
        raise PipelineError(
            f"engine.gpu={engine.gpu} is not what engine.instance={name} has",
            why=f"{name} has {instance.gpus} × {instance.gpu}",
            fix="leave engine.gpu out, or name another instance",
        )
    return Machine(name, GPUS[instance.gpu], instance.gpus, instance.link)


def _known(field: str, name: str, known: list[str]) -> str:
    exact = {candidate.lower(): candidate for candidate in known}
    if name.lower() in exact:
        return exact[name.lower()]
    near = difflib.get_close_matches(name.lower(), exact, n=1, cutoff=0.5)
    raise PipelineError(
        f"{field}={name} is not known",
        why=f"known: {', '.join(known)}",
        fix=f"did you mean {exact[near[0]]}?" if near else "name one of these, or add it to shardyard/machines.py",
    )
