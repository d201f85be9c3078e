// Products of bfloat16 and many tokens by AMX. Arithmetic is what they wait for, so it must not wait for memory: 32 tokens
// by 32 rows are multiplied at a time, and what they need again soon is cut to fit the core's caches.

#include "packed_matrix.hpp"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__linux__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "amx_activations.hpp"
#include "tiles.hpp"

namespace shardyard {
namespace {

// Of a product [tokens, columns] · [columns, rows], what is done at a time. The weight, 64 kB, the sums, 128 kB, and
// all of the activations, 128 kB, lie in the second cache; 32 tokens of activations, 16 kB, in the first.
constexpr std::size_t kRows = 128;
constexpr std::size_t kColumns = 256;
constexpr std::size_t kTokens = 256;
constexpr std::size_t kBlocks = kRows / kBlockRows;

using Sums = float[kTokens / kTileTokens][kBlocks][kTileTokens * kBlockRows];

// Some columns of some blocks of a matrix.
struct Part {
    const PackedMatrix& matrix;
    std::size_t block, blocks, column, columns;

    std::size_t bytes() const { return columns * kBlockRows * 2; }
    const std::uint8_t* source(std::size_t index) const {
        return matrix.block(block + index) + column * kBlockRows * 2;
    }

    // Has the core's second cache fetch the `share`th of `shares` shares.
    void prefetch(std::size_t share, std::size_t shares) const {
        const std::size_t lines = bytes() / 64, all = blocks * lines;
        for (std::size_t line = share * all / shares; line < (share + 1) * all / shares; ++line) {
            _mm_prefetch(source(line / lines) + line % lines * 64, _MM_HINT_T1);
        }
    }
};

// Two tiles side by side; of an odd number the last is its own partner.
template <typename T>
struct Two {
    T first, second;
};

// Adds the products of 32 tokens and 32 rows over `bytes` of tiles to four tiles of sums, or begins these.
void four_tiles(Two<const std::uint8_t*> x, Two<const std::uint8_t*> weight, std::size_t bytes, bool begin,
                Two<Two<float*>> sums) {
    constexpr int kRow = kBlockRows * sizeof(float);
    if (begin) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums.first.first, kRow);
        _tile_loadd(1, sums.first.second, kRow);
        _tile_loadd(2, sums.second.first, kRow);
        _tile_loadd(3, sums.second.second, kRow);
    }
    for (std::size_t at = 0; at < bytes; at += kTileBytes) {
        _tile_loadd(6, weight.first + at, 64);
        _tile_loadd(4, x.first + at, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, weight.second + at, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x.second + at, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(3, sums.second.second, kRow);
    _tile_stored(2, sums.second.first, kRow);
    _tile_stored(1, sums.first.second, kRow);
    _tile_stored(0, sums.first.first, kRow);
}

void put(const float* sums, std::size_t tokens, float* y, std::size_t stride) {
    for (std::size_t t = 0; t < tokens; ++t) _mm512_storeu_ps(y + t * stride, _mm512_load_ps(sums + t * kBlockRows));
}

// Up to kTokens activations and where their products go.
struct Tokens {
    const std::uint8_t* prepared;
    std::size_t count, columns;
    float* y;
    std::size_t stride;

    std::size_t panels() const { return whole_tiles(count); }
    const std::uint8_t* panel(std::size_t index) const { return prepared + index * kTileTokens * columns * 2; }
};

// Multiplies by one part of a weight; its last columns end the sums, which are then written. Meanwhile `next` is fetched.
void multiply_part(Sums& sums, const Part& part, const Tokens& x, const Part& next) {
    const std::size_t at = part.column * kTileTokens * 2;
    const std::size_t pairs = (part.blocks + 1) / 2, shares = (x.panels() + 1) / 2 * pairs;
    const bool begin = part.column == 0, end = part.column + part.columns == x.columns;
    for (std::size_t p = 0; p < x.panels(); p += 2) {
        const std::size_t q = std::min(p + 1, x.panels() - 1);
        for (std::size_t b = 0; b < part.blocks; b += 2) {
            const std::size_t c = std::min(b + 1, part.blocks - 1);
            next.prefetch(p / 2 * pairs + b / 2, shares);
            four_tiles({x.panel(p) + at, x.panel(q) + at}, {part.source(b), part.source(c)}, part.bytes(), begin,
                       {{sums[p][b], sums[p][c]}, {sums[q][b], sums[q][c]}});
            for (std::size_t i = p; end && i <= q; ++i) {
                const std::size_t left = std::min(kTileTokens, x.count - i * kTileTokens);
                float* y = x.y + i * kTileTokens * x.stride;
                put(sums[i][b], left, y + b * kBlockRows, x.stride);
                if (c != b) put(sums[i][c], left, y + c * kBlockRows, x.stride);
            }
        }
    }
}

void multiply_many(const PackedMatrix& matrix, const std::uint8_t* prepared, std::size_t tokens, std::size_t first,
                   std::size_t last, float* y, std::size_t stride) {
    alignas(64) static thread_local Sums sums;
    const Tiles tiles;
    const auto part = [&](std::size_t block, std::size_t column) {
        return Part{matrix, block, std::min(kBlocks, last - block), column, std::min(kColumns, matrix.columns - column)};
    };
    for (std::size_t block = first; block < last; block += kBlocks, y += kRows) {
        for (std::size_t token = 0; token < tokens; token += kTokens) {
            const Tokens x{prepared + token * matrix.columns * 2, std::min(kTokens, tokens - token), matrix.columns,
                           y + token * stride, stride};
            const std::size_t after = token + kTokens < tokens ? block : std::min(block + kBlocks, last - 1);
            for (std::size_t column = 0; column < matrix.columns; column += kColumns) {
                const bool more = column + kColumns < matrix.columns;
                multiply_part(sums, part(block, column), x, more ? part(block, column + kColumns) : part(after, 0));
            }
        }
    }
}

constexpr Kernel kMany{bfloat16_bytes, bfloat16_prepare, multiply_many};

}  // namespace

const Kernel* amx_many_kernel() { return &kMany; }

}  // namespace shardyard

#else

const shardyard::Kernel* shardyard::amx_many_kernel() { return nullptr; }

#endif
