// What the kernels for AMX share: activations in bfloat16 as the tiles take them.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace shardyard {

constexpr std::size_t kTileTokens = 16;
constexpr std::size_t kTileBytes = 1024;
// Columns of bfloat16 in a tile.
constexpr std::size_t kTileColumns = 32;

inline std::size_t whole_tiles(std::size_t tokens) { return (tokens + kTileTokens - 1) / kTileTokens; }

// Prepared activations: bfloat16 [tokens / 16, columns / 32, 16, 32], the last tokens padded with zeros.
inline std::size_t bfloat16_bytes(std::size_t tokens, std::size_t columns) {
    return whole_tiles(tokens) * kTileTokens * columns * 2;
}

inline void bfloat16_prepare(const float* x, std::size_t columns, std::size_t tokens, std::size_t first,
                             std::size_t last, std::uint8_t* prepared) {
    const std::size_t end = last == tokens ? whole_tiles(tokens) * kTileTokens : last;
    for (std::size_t token = first; token < end; ++token) {
        std::uint8_t* row = prepared + token / kTileTokens * kTileTokens * columns * 2 + token % kTileTokens * 64;
        for (std::size_t k = 0; k < columns; k += kTileColumns, row += kTileBytes) {
            __m512i numbers = _mm512_setzero_si512();
            if (token < tokens) {
                const float* at = x + token * columns + k;
                const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(at + 16), _mm512_loadu_ps(at));
                std::memcpy(&numbers, &both, sizeof(numbers));
            }
            _mm512_storeu_si512(row, numbers);
        }
    }
}

}  // namespace shardyard
