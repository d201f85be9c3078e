// y = act(gate) · y, element by element: what joins the two branches of a gated MLP.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace shardyard {

enum class Activation : std::int64_t { none = 0, silu = 1, gelu_tanh = 2 };

// 1 / (1 + exp(-x)), to 1e-7 relative; written so that the compiler makes vector code of a loop around it.
// exp(v) is 2^n · exp(r), |r| <= ln(2) / 2, exp(r) by its Taylor series.
inline float sigmoid(float x) {
    float v = -x;
    v = v > 87.f ? 87.f : v;
    v = v < -87.f ? -87.f : v;
    // Adding 1.5 · 2^23 rounds to the nearest whole number, which is then in the lower bits.
    constexpr float kRound = 12582912.f;
    const float shifted = v * 1.44269504f + kRound;
    const float n = shifted - kRound;
    const float r = (v - n * 0.693145752f) - n * 1.42860677e-6f;
    float power = 1.f / 5040;
    power = power * r + 1.f / 720;
    power = power * r + 1.f / 120;
    power = power * r + 1.f / 24;
    power = power * r + 1.f / 6;
    power = power * r + .5f;
    power = power * r + 1.f;
    power = power * r + 1.f;
    const std::int32_t bits = (static_cast<std::int32_t>(n) + 127) << 23;
    float two_to_n;
    __builtin_memcpy(&two_to_n, &bits, sizeof(two_to_n));
    return 1.f / (1.f + power * two_to_n);
}

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
