// y = act(gate) · y, element by element: what joins the two branches of a gated MLP.
#pragma once

#include <cstddef>
#include <cstdint>

#include "exponential.hpp"

namespace shardyard {

enum class Activation : std::int64_t { none = 0, silu = 1, gelu_tanh = 2 };

inline float sigmoid(float x) { return 1.f / (1.f + exponential(-x)); }

inline void gate_row(Activation activation, const float* gate, float* y, std::size_t count) {
    if (activation == Activation::silu) {
        for (std::size_t i = 0; i < count; ++i) y[i] *= gate[i] * sigmoid(gate[i]);
        return;
    }
    // (1 + tanh(u)) / 2 is sigmoid(2 u).
    constexpr float kTwiceRoot = 1.5957691216057308f;
    for (std::size_t i = 0; i < count; ++i) {
        const float g = gate[i];
        y[i] *= g * sigmoid(kTwiceRoot * (g + 0.044715f * g * g * g));
    }
}

}  // namespace shardyard
