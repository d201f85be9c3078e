// Products by AMX, whose tiles multiply 16 tokens by 16 rows: 64 columns of int8, or 32 of bfloat16, at a time. Those of
// bfloat16 and many tokens are in amx_many.cpp.
//
// int8 meets activations in int8, a scale per token and group of 64 columns, as in kernels_avx512.cpp: each step of a tile
// is one group, whose whole-number results are scaled and added in float32. bfloat16 meets activations rounded to bfloat16.

#include "packed_matrix.hpp"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "amx_activations.hpp"
#include "quantize.hpp"
#include "tiles.hpp"

namespace shardyard {
namespace {

// How far ahead of its use a weight is fetched, in bytes: first to the core's second cache, then to its first. A tenth faster
// than to the first at once.
constexpr std::size_t kFar = 16384, kNear = 2048;

using Results = float[kTileTokens][kBlockRows];
using Counts = std::int32_t[kTileTokens][kBlockRows];

template <bool Far>
inline void fetch(const std::uint8_t* tile) {
    for (std::size_t line = 0; line < kTileBytes; line += 64) {
        if (Far) _mm_prefetch(tile + kFar + line, _MM_HINT_T1);
        _mm_prefetch(tile + kNear + line, _MM_HINT_T0);
    }
}

// Quantized activations, per 16 tokens: a tile per group [groups, 16, 64], then the scales [groups, 16], then for each
// token where its sum begins [16]. Tokens that are missing have a scale of zero.
struct Int8Panel {
    Int8Panel(const std::uint8_t* memory, std::size_t index, std::size_t columns)
        : tiles(const_cast<std::uint8_t*>(memory) + index * bytes(columns)),
          scales(reinterpret_cast<float*>(tiles + kTileTokens * columns)),
          starts(scales + kTileTokens * (columns / kGroup)) {}

    static std::size_t bytes(std::size_t columns) {
        return kTileTokens * (columns + (columns / kGroup + 1) * sizeof(float));
    }

    std::uint8_t* tiles;
    float* scales;
    float* starts;
};

std::size_t int8_bytes(std::size_t tokens, std::size_t columns) { return whole_tiles(tokens) * Int8Panel::bytes(columns); }

void int8_prepare(const float* x, std::size_t columns, std::size_t tokens, std::size_t first, std::size_t last,
                  std::uint8_t* prepared) {
    const std::size_t groups = columns / kGroup;
    const std::size_t end = last == tokens ? whole_tiles(tokens) * kTileTokens : last;
    for (std::size_t token = first; token < end; ++token) {
        const Int8Panel panel(prepared, token / kTileTokens, columns);
        const std::size_t place = token % kTileTokens;
        float start = 0;
        for (std::size_t group = 0; group < groups; ++group) {
            auto* numbers = reinterpret_cast<std::int8_t*>(panel.tiles + group * kTileBytes + place * kGroup);
            float& scale = panel.scales[group * kTileTokens + place];
            if (token >= tokens) {
                std::memset(numbers, 0, kGroup);
                scale = 0;
                continue;
            }
            const Group made = quantize_group(x + token * columns + group * kGroup, numbers);
            scale = made.scale;
            start -= made.scale * static_cast<float>(made.excess);
        }
        panel.starts[place] = start;
    }
}

inline void add_group(const Counts& counts, const float* scales, __m512 (&total)[kTileTokens]) {
#pragma GCC unroll 16
    for (std::size_t t = 0; t < kTileTokens; ++t) {
        const __m512 count = _mm512_cvtepi32_ps(_mm512_load_si512(counts[t]));
        total[t] = _mm512_fmadd_ps(count, _mm512_set1_ps(scales[t]), total[t]);
    }
}

// One block and 16 tokens, the `First` that meet it. A tile's results are added two steps after it was multiplied, so that
// nothing waits for it.
template <bool First>
void int8_block(const PackedMatrix& matrix, std::size_t block, const Int8Panel& x, std::size_t tokens, float* y,
                std::size_t stride) {
    alignas(64) Counts counts[4];
    const std::uint8_t* weight = matrix.block(block);
    const std::size_t groups = matrix.columns / kGroup;
    __m512 total[kTileTokens];
    for (std::size_t t = 0; t < kTileTokens; ++t) total[t] = _mm512_set1_ps(x.starts[t]);
    std::size_t group = 0;
    for (; group + 2 <= groups; group += 2) {
        const std::size_t at = group * kTileBytes, half = group & 2;
        fetch<First>(weight + at);
        fetch<First>(weight + at + kTileBytes);
        _tile_zero(0);
        _tile_loadd(4, x.tiles + at, 64);
        _tile_loadd(6, weight + at, 64);
        _tile_dpbsud(0, 4, 6);
        _tile_zero(1);
        _tile_loadd(5, x.tiles + at + kTileBytes, 64);
        _tile_loadd(7, weight + at + kTileBytes, 64);
        _tile_dpbsud(1, 5, 7);
        if (group) {
            add_group(counts[half ^ 2], x.scales + (group - 2) * kTileTokens, total);
            add_group(counts[(half ^ 2) + 1], x.scales + (group - 1) * kTileTokens, total);
        }
        _tile_stored(0, counts[half], 64);
        _tile_stored(1, counts[half + 1], 64);
    }
    for (std::size_t last = group < 2 ? 0 : group - 2; last < group; ++last) {
        add_group(counts[last & 3], x.scales + last * kTileTokens, total);
    }
    if (group < groups) {
        _tile_zero(0);
        _tile_loadd(4, x.tiles + group * kTileBytes, 64);
        _tile_loadd(6, weight + group * kTileBytes, 64);
        _tile_dpbsud(0, 4, 6);
        _tile_stored(0, counts[0], 64);
        add_group(counts[0], x.scales + group * kTileTokens, total);
    }
    const __m512 scales = _mm512_loadu_ps(matrix.scales + block * kBlockRows);
    // A loop over all, so that the sums stay in registers.
#pragma GCC unroll 16
    for (std::size_t t = 0; t < kTileTokens; ++t) {
        if (t < tokens) _mm512_storeu_ps(y + t * stride, _mm512_mul_ps(total[t], scales));
    }
}

// The tokens that a few blocks meet at a time: what they write then lies in few enough pages for the core to know them all.
constexpr std::size_t kTokensAtATime = 64;

void int8_multiply(const PackedMatrix& matrix, const std::uint8_t* prepared, std::size_t tokens, std::size_t first,
                   std::size_t last, float* y, std::size_t stride) {
    const Tiles tiles;
    for (std::size_t begin = 0; begin < tokens; begin += kTokensAtATime) {
        const std::size_t end = std::min(tokens, begin + kTokensAtATime);
        for (std::size_t block = first; block < last; ++block) {
            float* at = y + (block - first) * kBlockRows;
            for (std::size_t token = begin; token < end; token += kTileTokens) {
                const Int8Panel panel(prepared, token / kTileTokens, matrix.columns);
                const auto work = token ? int8_block<false> : int8_block<true>;
                work(matrix, block, panel, std::min(kTileTokens, end - token), at + token * stride, stride);
            }
        }
    }
}

// Up to 16 tokens. The sums of even and odd tiles are kept apart, since a sum has to wait for itself.
void bfloat16_stream(const PackedMatrix& matrix, std::size_t block, const std::uint8_t* x, std::size_t tokens, float* y,
                     std::size_t stride) {
    const std::uint8_t* weight = matrix.block(block);
    _tile_zero(0);
    _tile_zero(1);
    for (std::size_t at = 0; at < matrix.block_bytes(); at += 2 * kTileBytes) {
        fetch<true>(weight + at);
        fetch<true>(weight + at + kTileBytes);
        _tile_loadd(4, x + at, 64);
        _tile_loadd(6, weight + at, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, x + at + kTileBytes, 64);
        _tile_loadd(7, weight + at + kTileBytes, 64);
        _tile_dpbf16ps(1, 5, 7);
    }
    alignas(64) Results even, odd;
    _tile_stored(0, even, 64);
    _tile_stored(1, odd, 64);
    for (std::size_t t = 0; t < tokens; ++t) {
        _mm512_storeu_ps(y + t * stride, _mm512_add_ps(_mm512_load_ps(even[t]), _mm512_load_ps(odd[t])));
    }
}

void bfloat16_multiply(const PackedMatrix& matrix, const std::uint8_t* prepared, std::size_t tokens, std::size_t first,
                       std::size_t last, float* y, std::size_t stride) {
    const Tiles tiles;
    for (std::size_t block = first; block < last; ++block, y += kBlockRows) {
        bfloat16_stream(matrix, block, prepared, tokens, y, stride);
    }
}

// The kernel gives tiles to processes that ask for them.
bool may_use_tiles() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return granted;
}

constexpr Kernel kInt8{int8_bytes, int8_prepare, int8_multiply};
constexpr Kernel kBfloat16{bfloat16_bytes, bfloat16_prepare, bfloat16_multiply};

}  // namespace

const Kernel* amx_kernel(Kind kind) {
    return !may_use_tiles() ? nullptr : kind == Kind::int8 ? &kInt8 : &kBfloat16;
}

}  // namespace shardyard

#else

const shardyard::Kernel* shardyard::amx_kernel(Kind) { return nullptr; }

#endif
