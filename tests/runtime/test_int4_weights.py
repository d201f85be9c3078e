"""Int4 weights in groups: the plugin keeps them compressed and multiplies by what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset16 as op
import pytest

from shardyard.builder.convert import convert_checkpoint
from shardyard.builder.targets.cpu import rank_arrays
from shardyard.runtime.rank import RankModel, RankSettings
from shardyard.runtime.weights import Weights
from shardyard.runtime.world import World
from shardyard.spec import ParallelSpec

PROMPT = np.random.default_rng(3).integers(6, 515, 40).tolist()


def _spread(small: np.ndarray, columns: int) -> np.ndarray:
    return np.repeat(small.astype(np.float32), columns // small.shape[-1], axis=-1)


def _dequantized(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays with every quantized matrix as float32, number by number."""
    plain = {}
    for name, array in arrays.items():
        base = name.removesuffix("weight")
        if name.endswith(".zero") or "scal" in name:
            continue
        if f"{base}zero" in arrays:
            if array.dtype == np.uint8:
                array = np.stack([array & 15, array >> 4], axis=-1).reshape(*array.shape[:-1], -1)
            zeros, scales = arrays[f"{base}zero"], arrays[f"{base}weights_scaling_factor"]
            plain[name] = (array - _spread(zeros, array.shape[-1])) * _spread(scales, array.shape[-1])
        elif array.dtype == np.int8:
            plain[name] = array * arrays[f"{base}per_channel_scale"]
        else:
            plain[name] = array
    return plain


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_the_engine_computes_what_the_numbers_stand_for(
    make_checkpoint: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    convert_checkpoint(make_checkpoint("--family", family), tmp_path, ParallelSpec())
    spec, arrays = rank_arrays(tmp_path, 0, weights="int4")
    model = RankModel(spec, arrays, World(1, 1), RankSettings.exact())
    plain = RankModel(replace(spec, weights="float32"), _dequantized(arrays), World(1, 1), RankSettings.exact())
    got, wanted = model.logits(PROMPT), plain.logits(PROMPT)
    assert got is not None
    assert wanted is not None
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
    if family == "llama":
        assert arrays["transformer.layers.0.mlp.fc.weight"].dtype == np.uint8
        assert (
            arrays["lm_head.weight" if "lm_head.weight" in arrays else "transformer.vocab_embedding.weight"].dtype
            == np.int8
        )


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dynamic", [0, 64])
def test_the_plugin_keeps_groups_compressed(packed: bool, dynamic: int) -> None:
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 16, (256, 512)).astype(np.uint8)
    zeros = generator.integers(0, 17, (256, 8))
    scales = generator.random((256, 8), np.float32)
    arrays: dict[str, Any] = {
        "x.weight": numbers[:, ::2] | numbers[:, 1::2] << 4 if packed else numbers.view(np.int8),
        "x.zero": zeros.astype(np.uint8 if packed else np.float32),
        "x.weights_scaling_factor": scales,
    }
    x = op.parameter(ov.PartialShape([-1, 512]), ov.Type.f32, "x")
    graph = ov.Model([op.result(op.matmul(x, Weights(arrays).matrix("x.weight"), False, True))], [x])
    properties = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": dynamic}
    compiled = ov.Core().compile_model(graph, "CPU", properties)
    value = generator.standard_normal((5, 512), np.float32)
    wanted = value @ ((numbers - _spread(zeros, 512)) * _spread(scales, 512)).T
    assert np.abs(compiled([value])[0] - wanted).max() < (2e-2 if dynamic else 1e-5) * np.abs(wanted).max()
    large = {
        str(node.get_output_element_type(0).get_type_name())
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_output_partial_shape(0).is_static and list(node.get_output_shape(0)) == [256, 512]
    }
    assert large <= {"u4", "i8"}


def test_a_slice_of_rows_has_its_own_scales() -> None:
    generator = np.random.default_rng(1)
    arrays = {
        "x.weight": generator.integers(0, 256, (8, 32)).astype(np.uint8),
        "x.zero": generator.integers(0, 16, (8, 2)).astype(np.uint8),
        "x.weights_scaling_factor": generator.random((8, 2), np.float32),
    }
    weights = Weights(arrays)
    parts = [ov.Model([op.result(weights.matrix("x.weight", rows))], []) for rows in (slice(0, 4), slice(4, 8))]
    got = [ov.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0] for part in parts]
    assert np.allclose(np.concatenate(got), _dequantized(arrays)["x.weight"], atol=1e-6)
