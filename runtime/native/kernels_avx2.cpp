// Products by AVX2 and FMA: weights become float32 in registers and meet the activations as they are.
//
// Exact in the activations; slower than the plugin's int8 for many tokens, and as fast as memory for few.

#include "packed_matrix.hpp"

#if defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace shardyard {
namespace {

// Tokens that one pass takes: their sums for half a block, two registers each, leave room for the weights.
constexpr std::size_t kPass = 4;

std::size_t prepared_bytes(std::size_t tokens, std::size_t columns) { return tokens * columns * sizeof(float); }

void prepare(const float* x, std::size_t columns, std::size_t, std::size_t first, std::size_t last,
             std::uint8_t* prepared) {
    std::memcpy(prepared + first * columns * sizeof(float), x + first * columns, (last - first) * columns * sizeof(float));
}

// Eight rows' numbers of the columns that a 32-bit lane holds: four of int8, two of bfloat16.
template <Kind kind>
struct Lane;

template <>
struct Lane<Kind::int8> {
    static constexpr int kColumns = 4;
    static __m256 number(__m256i lanes, int column) {
        const __m256i byte = _mm256_srlv_epi32(lanes, _mm256_set1_epi32(8 * column));
        const __m256i number = _mm256_and_si256(byte, _mm256_set1_epi32(255));
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(number, _mm256_set1_epi32(128)));
    }
};

template <>
struct Lane<Kind::bfloat16> {
    static constexpr int kColumns = 2;
    // A bfloat16 is the upper half of a float32.
    static __m256 number(__m256i lanes, int column) {
        const __m256i upper = _mm256_and_si256(lanes, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
        return _mm256_castsi256_ps(column ? upper : _mm256_slli_epi32(lanes, 16));
    }
};

template <Kind kind>
void half_block(const std::uint8_t* weight, std::size_t columns, const float* x, std::size_t tokens, float* y,
                std::size_t stride, const float* scales) {
    using L = Lane<kind>;
    __m256 sum[kPass];
    for (auto& value : sum) value = _mm256_setzero_ps();
    for (std::size_t k = 0; k < columns; k += L::kColumns, weight += 64) {
        const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight));
        for (int column = 0; column < L::kColumns; ++column) {
            const __m256 number = L::number(lanes, column);
            for (std::size_t t = 0; t < tokens; ++t) {
                sum[t] = _mm256_fmadd_ps(number, _mm256_set1_ps(x[t * columns + k + column]), sum[t]);
            }
        }
    }
    const __m256 scale = scales ? _mm256_loadu_ps(scales) : _mm256_set1_ps(1.f);
    for (std::size_t t = 0; t < tokens; ++t) _mm256_storeu_ps(y + t * stride, _mm256_mul_ps(sum[t], scale));
}

template <Kind kind>
void multiply(const PackedMatrix& matrix, const std::uint8_t* prepared, std::size_t tokens, std::size_t first,
              std::size_t last, float* y, std::size_t stride) {
    const float* x = reinterpret_cast<const float*>(prepared);
    for (std::size_t block = first; block < last; ++block, y += kBlockRows) {
        for (std::size_t token = 0; token < tokens; token += kPass) {
            for (int half = 0; half < 2; ++half) {
                const float* scales = matrix.scales ? matrix.scales + block * kBlockRows + 8 * half : nullptr;
                half_block<kind>(matrix.block(block) + 32 * half, matrix.columns, x + token * matrix.columns,
                                 std::min(kPass, tokens - token), y + token * stride + 8 * half, stride, scales);
            }
        }
    }
}

constexpr Kernel kInt8{prepared_bytes, prepare, multiply<Kind::int8>};
constexpr Kernel kBfloat16{prepared_bytes, prepare, multiply<Kind::bfloat16>};

}  // namespace

const Kernel* avx2_kernel(Kind kind) { return kind == Kind::int8 ? &kInt8 : &kBfloat16; }

}  // namespace shardyard

#else

const shardyard::Kernel* shardyard::avx2_kernel(Kind) { return nullptr; }

#endif
