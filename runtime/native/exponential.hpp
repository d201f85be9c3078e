// exp() for loops.
#pragma once

#include <cstdint>

namespace shardyard {

// exp(v) to 1e-7 relative, of v in [-87, 87]; what is beyond counts as the border. Written so that the compiler makes
// vector code of a loop around it: exp(v) is 2^n · exp(r), |r| <= ln(2) / 2, exp(r) by its Taylor series.
inline float exponential(float v) {
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
    return power * two_to_n;
}

}  // namespace shardyard
