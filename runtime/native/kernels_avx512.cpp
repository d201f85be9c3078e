// Products by the dot-product instructions of AVX-512: VNNI for int8, BF16 for bfloat16.
//
// int8 meets activations in int8 too, a scale per token and group of 64 columns. The instruction wants one operand
// without a sign: that is the weight, as number + 128, and -128 · Σx, which belongs to the activations, is where each
// group's sum begins. bfloat16 meets activations rounded to bfloat16.

#include "packed_matrix.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__) && defined(__AVX512VL__) && defined(__AVX512BW__)

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "quantize.hpp"

namespace shardyard {
namespace {

// Tokens that one pass over a block takes: as many sums as registers hold besides the weight.
constexpr std::size_t kPass = 8;
// How far ahead of its use a weight is fetched, in bytes of each block, as measured: further where more is done with it.
constexpr std::size_t ahead(int tokens, int blocks) { return blocks > 1 ? 1024 : tokens <= 2 ? 2048 : 8192; }

inline std::int32_t four_bytes(const void* address) {
    std::int32_t bytes;
    std::memcpy(&bytes, address, sizeof(bytes));
    return bytes;
}

// Quantized activations: numbers [tokens, columns], then per token and group a scale, then -128 · Σ numbers.
struct Int8Rows {
    Int8Rows(std::uint8_t* memory, std::size_t tokens, std::size_t columns)
        : numbers(reinterpret_cast<std::int8_t*>(memory)),
          scales(reinterpret_cast<float*>(memory + tokens * columns)),
          starts(reinterpret_cast<std::int32_t*>(scales + tokens * (columns / kGroup))) {}

    std::int8_t* numbers;
    float* scales;
    std::int32_t* starts;
};

std::size_t int8_bytes(std::size_t tokens, std::size_t columns) { return tokens * (columns + columns / kGroup * 8); }

void int8_prepare(const float* x, std::size_t columns, std::size_t tokens, std::size_t first, std::size_t last,
                  std::uint8_t* prepared) {
    const Int8Rows rows(prepared, tokens, columns);
    const std::size_t groups = columns / kGroup;
    for (std::size_t i = first * groups; i < last * groups; ++i) {
        const Group group = quantize_group(x + i * kGroup, rows.numbers + i * kGroup);
        rows.scales[i] = group.scale;
        rows.starts[i] = -group.excess;
    }
}

// B blocks and T tokens, whose rows begin at `token`.
template <int T, int B>
void int8_blocks(const PackedMatrix& matrix, std::size_t block, const Int8Rows& x, std::size_t token, float* y,
                std::size_t stride) {
    const std::size_t columns = matrix.columns, groups = columns / kGroup;
    const std::int8_t* numbers = x.numbers + token * columns;
    const float* scales = x.scales + token * groups;
    const std::int32_t* starts = x.starts + token * groups;
    const std::uint8_t* weight = matrix.block(block);
    const std::size_t bytes = matrix.block_bytes();
    __m512 total[B][T];
    for (auto& row : total) {
        for (auto& value : row) value = _mm512_setzero_ps();
    }
    for (std::size_t group = 0; group < groups; ++group) {
        __m512i sum[B][T];
        for (auto& row : sum) {
            for (int t = 0; t < T; ++t) row[t] = _mm512_set1_epi32(starts[t * groups + group]);
        }
#pragma GCC unroll 4
        for (std::size_t k = group * kGroup; k < (group + 1) * kGroup; k += 4) {
            __m512i same[T];
            for (int t = 0; t < T; ++t) same[t] = _mm512_set1_epi32(four_bytes(numbers + t * columns + k));
            for (int b = 0; b < B; ++b) {
                const std::uint8_t* at = weight + b * bytes + k * kBlockRows;
                _mm_prefetch(at + ahead(T, B), _MM_HINT_T0);
                const __m512i numbers16 = _mm512_loadu_si512(at);
                for (int t = 0; t < T; ++t) sum[b][t] = _mm512_dpbusd_epi32(sum[b][t], numbers16, same[t]);
            }
        }
        for (int t = 0; t < T; ++t) {
            const __m512 scale = _mm512_set1_ps(scales[t * groups + group]);
            for (int b = 0; b < B; ++b) total[b][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[b][t]), scale, total[b][t]);
        }
    }
    for (int b = 0; b < B; ++b) {
        const __m512 row_scales = _mm512_loadu_ps(matrix.scales + (block + b) * kBlockRows);
        for (int t = 0; t < T; ++t) {
            _mm512_storeu_ps(y + t * stride + b * kBlockRows, _mm512_mul_ps(total[b][t], row_scales));
        }
    }
}

std::size_t bfloat16_bytes(std::size_t tokens, std::size_t columns) { return tokens * columns * 2; }

void bfloat16_prepare(const float* x, std::size_t columns, std::size_t, std::size_t first, std::size_t last,
                      std::uint8_t* prepared) {
    for (std::size_t i = first * columns; i < last * columns; i += 16) {
        const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
        std::memcpy(prepared + 2 * i, &rounded, sizeof(rounded));
    }
}

template <int T, int B>
void bfloat16_blocks(const PackedMatrix& matrix, std::size_t block, const std::uint8_t* x, std::size_t token, float* y,
                     std::size_t stride) {
    // Few tokens mean few sums, and each must wait for itself: several sums per token fill the gap.
    constexpr std::size_t kSums = T * B == 1 ? 4 : T * B <= 4 ? 2 : 1;
    const std::size_t columns = matrix.columns;
    const std::uint8_t* weight = matrix.block(block);
    const std::uint8_t* numbers = x + 2 * token * columns;
    const std::size_t bytes = matrix.block_bytes();
    __m512 sum[kSums][B][T];
    for (auto& blocks : sum) {
        for (auto& row : blocks) {
            for (auto& value : row) value = _mm512_setzero_ps();
        }
    }
    for (std::size_t k = 0; k < columns; k += 2 * kSums) {
        for (std::size_t s = 0; s < kSums; ++s) {
            const std::size_t at = k + 2 * s;
            __m512i same[T];
            for (int t = 0; t < T; ++t) same[t] = _mm512_set1_epi32(four_bytes(numbers + 2 * (t * columns + at)));
            for (int b = 0; b < B; ++b) {
                const std::uint8_t* from = weight + b * bytes + 2 * at * kBlockRows;
                _mm_prefetch(from + ahead(T, B), _MM_HINT_T0);
                const auto pair = reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
                for (int t = 0; t < T; ++t) {
                    sum[s][b][t] = _mm512_dpbf16_ps(sum[s][b][t], pair, reinterpret_cast<__m512bh>(same[t]));
                }
            }
        }
    }
    for (int b = 0; b < B; ++b) {
        for (int t = 0; t < T; ++t) {
            for (std::size_t s = 1; s < kSums; ++s) sum[0][b][t] = _mm512_add_ps(sum[0][b][t], sum[s][b][t]);
            _mm512_storeu_ps(y + t * stride + b * kBlockRows, sum[0][b][t]);
        }
    }
}

template <typename Rows>
using BlockFunction = void (*)(const PackedMatrix&, std::size_t, const Rows&, std::size_t, float*, std::size_t);

template <typename Rows>
using Functions = std::array<BlockFunction<Rows>, kPass>;

// Tokens that fit into one pass go over several blocks at once (`many`). Where there are more, a block stays in the core's
// cache while they go over it, `kPass` at a time.
template <typename Rows>
void each_block(const Functions<Rows>& one, const Functions<Rows>& many, const PackedMatrix& matrix, const Rows& rows,
                std::size_t tokens, std::size_t first, std::size_t last, float* y, std::size_t stride) {
    std::size_t block = first;
    if (const std::size_t count = blocks_together(tokens); tokens <= kPass) {
        for (; block + count <= last; block += count, y += count * kBlockRows) {
            many[tokens - 1](matrix, block, rows, 0, y, stride);
        }
    }
    for (; block < last; ++block, y += kBlockRows) {
        for (std::size_t token = 0; token < tokens; token += kPass) {
            const std::size_t count = std::min(kPass, tokens - token);
            one[count - 1](matrix, block, rows, token, y + token * stride, stride);
        }
    }
}

template <int... T>
constexpr Functions<Int8Rows> int8_one(std::integer_sequence<int, T...>) {
    return {int8_blocks<T + 1, 1>...};
}

template <int... T>
constexpr Functions<Int8Rows> int8_many(std::integer_sequence<int, T...>) {
    return {int8_blocks<T + 1, blocks_together(T + 1)>...};
}

using Bytes = const std::uint8_t*;

template <int T, int B>
void bfloat16_rows(const PackedMatrix& matrix, std::size_t block, const Bytes& x, std::size_t token, float* y,
                   std::size_t stride) {
    bfloat16_blocks<T, B>(matrix, block, x, token, y, stride);
}

template <int... T>
constexpr Functions<Bytes> bfloat16_one(std::integer_sequence<int, T...>) {
    return {bfloat16_rows<T + 1, 1>...};
}

template <int... T>
constexpr Functions<Bytes> bfloat16_many(std::integer_sequence<int, T...>) {
    return {bfloat16_rows<T + 1, blocks_together(T + 1)>...};
}

constexpr auto kCounts = std::make_integer_sequence<int, kPass>();

void int8_multiply(const PackedMatrix& matrix, const std::uint8_t* prepared, std::size_t tokens, std::size_t first,
                   std::size_t last, float* y, std::size_t stride) {
    static constexpr auto one = int8_one(kCounts), many = int8_many(kCounts);
    const Int8Rows rows(const_cast<std::uint8_t*>(prepared), tokens, matrix.columns);
    each_block(one, many, matrix, rows, tokens, first, last, y, stride);
}

void bfloat16_multiply(const PackedMatrix& matrix, const std::uint8_t* prepared, std::size_t tokens, std::size_t first,
                       std::size_t last, float* y, std::size_t stride) {
    static constexpr auto one = bfloat16_one(kCounts), many = bfloat16_many(kCounts);
    each_block(one, many, matrix, prepared, tokens, first, last, y, stride);
}

constexpr Kernel kInt8{int8_bytes, int8_prepare, int8_multiply};
constexpr Kernel kBfloat16{bfloat16_bytes, bfloat16_prepare, bfloat16_multiply};

}  // namespace

const Kernel* avx512_kernel(Kind kind) { return kind == Kind::int8 ? &kInt8 : &kBfloat16; }

}  // namespace shardyard

#else

const shardyard::Kernel* shardyard::avx512_kernel(Kind) { return nullptr; }

#endif
