// Quantizes activations: each group of 64 columns of a token gets a scale and int8 numbers. For AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "packed_matrix.hpp"

namespace shardyard {

// Weights are stored as number + 128: what a product with them has too much is 128 · Σ numbers.
struct Group {
    float scale;
    std::int32_t excess;
};

inline Group quantize_group(const float* x, std::int8_t* numbers) {
    static_assert(kGroup == 64, "four registers of 16");
    __m512 part[4];
    __m512 largest = _mm512_setzero_ps();
    for (int i = 0; i < 4; ++i) {
        part[i] = _mm512_loadu_ps(x + 16 * i);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(part[i]));
    }
    const float limit = _mm512_reduce_max_ps(largest);
    const __m512 steps = _mm512_set1_ps(limit > 0 ? 127.f / limit : 0.f);
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < 4; ++i) {
        const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(part[i], steps));
        sum = _mm512_add_epi32(sum, rounded);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(numbers + 16 * i), _mm512_cvtsepi32_epi8(rounded));
    }
    return {limit / 127.f, 128 * _mm512_reduce_add_epi32(sum)};
}

}  // namespace shardyard
