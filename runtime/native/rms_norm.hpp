// RMSNorm of one row. Source: Zhang & Sennrich 2019 (arXiv:1910.07467).
#pragma once

#include <cmath>
#include <cstddef>

namespace shardyard {

// y = x / sqrt(mean(x²) + epsilon) · weights. Sums in lanes, as the compiler may not reorder one sum by itself.
inline void rms_norm(const float* x, const float* weights, std::size_t width, float epsilon, float* y) {
    constexpr std::size_t kLanes = 32;
    float sums[kLanes] = {};
    const std::size_t whole = width / kLanes * kLanes;
    for (std::size_t k = 0; k < whole; k += kLanes) {
        for (std::size_t i = 0; i < kLanes; ++i) sums[i] += x[k + i] * x[k + i];
    }
    float sum = 0;
    for (std::size_t k = whole; k < width; ++k) sum += x[k] * x[k];
    for (const float each : sums) sum += each;
    const float factor = 1.f / std::sqrt(sum / static_cast<float>(width) + epsilon);
    for (std::size_t k = 0; k < width; ++k) y[k] = x[k] * factor * weights[k];
}

}  // namespace shardyard
