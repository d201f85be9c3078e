// The most products per second that one thread can do: the kernels' own instructions on registers, no memory at all.

#include <chrono>
#include <cstdint>

#include "packed_product.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
#include "tiles.hpp"
#endif

using namespace shardyard;

namespace {

constexpr int kSteps = 1 << 16;

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#define SHARDYARD_STEP(sum, instruction) asm volatile(instruction " %1, %1, %0" : "+v"(sum) : "v"(zero));
#define SHARDYARD_FOUR(sums, instruction)                                                       \
    SHARDYARD_STEP(sums##0, instruction) SHARDYARD_STEP(sums##1, instruction)                   \
    SHARDYARD_STEP(sums##2, instruction) SHARDYARD_STEP(sums##3, instruction)

// Twelve sums, in registers by name, so that none waits for itself.
#define SHARDYARD_STEPS(instruction)                                                            \
    __m512i zero = _mm512_setzero_si512();                                                      \
    __m512i a0 = zero, a1 = zero, a2 = zero, a3 = zero, b0 = zero, b1 = zero, b2 = zero;        \
    __m512i b3 = zero, c0 = zero, c1 = zero, c2 = zero, c3 = zero;                              \
    for (int step = 0; step < kSteps; ++step) {                                                 \
        SHARDYARD_FOUR(a, instruction) SHARDYARD_FOUR(b, instruction) SHARDYARD_FOUR(c, instruction) \
    }
#endif

// Each returns how many products a call does.
double avx512_steps(Kind kind) {
#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
    if (kind == Kind::int8) {
        SHARDYARD_STEPS("vpdpbusd")
        return 12. * 64 * kSteps;
    }
    SHARDYARD_STEPS("vdpbf16ps")
    return 12. * 32 * kSteps;
#else
    (void)kind;
    return 0;
#endif
}

double amx_steps(Kind kind) {
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
    const Tiles tiles;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(6);
    for (int step = 0; step < kSteps; ++step) {
        if (kind == Kind::int8) {
            _tile_dpbsud(0, 4, 6);
            _tile_dpbsud(1, 4, 6);
            _tile_dpbsud(2, 4, 6);
            _tile_dpbsud(3, 4, 6);
        } else {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 6);
            _tile_dpbf16ps(2, 4, 6);
            _tile_dpbf16ps(3, 4, 6);
        }
    }
    return 4. * 16 * 16 * (kind == Kind::int8 ? 64 : 32) * kSteps;
#else
    (void)kind;
    return 0;
#endif
}

}  // namespace

// Products per second of the calling thread at a level, for a fifth of a second; 0 where it is not measured.
extern "C" double shardyard_peak(std::int64_t level, std::int64_t kind) {
    using Clock = std::chrono::steady_clock;
    if (level > static_cast<std::int64_t>(best_level())) return 0;
    const auto steps = static_cast<Level>(level) == Level::amx ? amx_steps
                       : static_cast<Level>(level) == Level::avx512 ? avx512_steps : nullptr;
    if (!steps) return 0;
    const auto started = Clock::now();
    double products = 0, seconds = 0;
    while (seconds < 0.2) {
        products += steps(static_cast<Kind>(kind));
        seconds = std::chrono::duration<double>(Clock::now() - started).count();
    }
    return products / seconds;
}
