// Products by AMX, whose tiles multiply 16 tokens · 32 columns by 32 columns · 16 rows of bfloat16 at a time.
//
// Activations are rounded to bfloat16. int8 weights become bfloat16, which holds every number up to 256 exactly, on the
// way from memory to the tile; so nothing is quantized but the weight, and each number that is read still costs a byte.

#include "packed_matrix.hpp"

#if defined(__AMX_BF16__) && defined(__AVX512VBMI__) && defined(__AVX512BF16__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace shardyard {
namespace {

constexpr std::size_t kTileTokens = 16;
constexpr std::size_t kTileColumns = 32;
constexpr std::size_t kTileBytes = 1024;
constexpr std::size_t kAhead = 4096;

struct alignas(64) TileShapes {
    std::uint8_t palette = 1, start_row = 0, unused[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles belong to a thread; while it has none, a change of threads is cheaper.
class Tiles {
public:
    Tiles() {
        static const TileShapes shapes;
        _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

// Prepared activations: bfloat16 [tokens / 16, columns / 32, 16, 32], the last tokens padded with zeros.
std::size_t prepared_bytes(std::size_t tokens, std::size_t columns) {
    return (tokens + kTileTokens - 1) / kTileTokens * kTileTokens * columns * 2;
}

void prepare(const float* x, std::size_t columns, std::size_t tokens, std::size_t first, std::size_t last,
             std::uint8_t* prepared) {
    const std::size_t padded = last == tokens ? (tokens + kTileTokens - 1) / kTileTokens * kTileTokens : last;
    for (std::size_t token = first; token < padded; ++token) {
        std::uint8_t* row = prepared + (token / kTileTokens * kTileTokens * columns * 2) + token % kTileTokens * 64;
        for (std::size_t k = 0; k < columns; k += kTileColumns, row += kTileBytes) {
            if (token < tokens) {
                const __m512 low = _mm512_loadu_ps(x + token * columns + k);
                const __m512 high = _mm512_loadu_ps(x + token * columns + k + 16);
                _mm512_storeu_si512(row, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
            } else {
                _mm512_storeu_si512(row, _mm512_setzero_si512());
            }
        }
    }
}

// The two bytes of the bfloat16 of each number from 0 to 127, and how they are woven into pairs of columns.
struct Tables {
    alignas(64) std::uint8_t low[128], high[128], first[64], second[64];

    Tables() {
        for (int number = 0; number < 128; ++number) {
            const float value = static_cast<float>(number);
            std::uint32_t bits;
            std::memcpy(&bits, &value, sizeof(bits));
            low[number] = static_cast<std::uint8_t>(bits >> 16);
            high[number] = static_cast<std::uint8_t>(bits >> 24);
        }
        for (int byte = 0; byte < 64; ++byte) {
            // Lane, column of the pair, upper byte or lower; the upper bytes are in the second operand.
            const int at = byte / 4 * 4 + byte / 2 % 2 + byte % 2 * 64;
            first[byte] = static_cast<std::uint8_t>(at);
            second[byte] = static_cast<std::uint8_t>(at + 2);
        }
    }
};

// Makes bfloat16 of int8 numbers: 1024 bytes, 64 columns of a block, become two tiles.
class Widener {
public:
    Widener() {
        static const Tables tables;
        for (int half = 0; half < 2; ++half) {
            low_[half] = _mm512_load_si512(tables.low + 64 * half);
            high_[half] = _mm512_load_si512(tables.high + 64 * half);
        }
        first_ = _mm512_load_si512(tables.first), second_ = _mm512_load_si512(tables.second);
    }

    void widen(const std::uint8_t* numbers, std::uint8_t* tiles) const {
#pragma GCC unroll 4
        for (int row = 0; row < 16; ++row) {
            const __m512i number = _mm512_xor_si512(_mm512_loadu_si512(numbers + 64 * row), _mm512_set1_epi8(-128));
            _mm_prefetch(numbers + 64 * row + kAhead, _MM_HINT_T0);
            const __m512i size = _mm512_abs_epi8(number);
            const __m512i low = _mm512_permutex2var_epi8(low_[0], size, low_[1]);
            const __m512i high = _mm512_permutex2var_epi8(high_[0], size, high_[1]);
            // high | (number & 0x80): the sign.
            const __m512i with_sign = _mm512_ternarylogic_epi32(high, number, _mm512_set1_epi8(-128), 0xf8);
            _mm512_store_si512(tiles + 128 * row, _mm512_permutex2var_epi8(low, first_, with_sign));
            _mm512_store_si512(tiles + 128 * row + 64, _mm512_permutex2var_epi8(low, second_, with_sign));
        }
    }

private:
    __m512i low_[2], high_[2], first_, second_;
};

using Results = float[kTileTokens][kBlockRows];

// Writes the rows of a tile of results that are tokens.
void put(const Results& results, const PackedMatrix& matrix, std::size_t block, std::size_t tokens, float* y,
         std::size_t stride) {
    const __m512 scales = matrix.scales ? _mm512_loadu_ps(matrix.scales + block * kBlockRows) : _mm512_set1_ps(1.f);
    for (std::size_t t = 0; t < tokens; ++t) {
        _mm512_storeu_ps(y + t * stride, _mm512_mul_ps(_mm512_load_ps(results[t]), scales));
    }
}

// Up to 16 tokens: each block goes from memory through the tiles once. The sums of even and odd tiles are kept apart,
// since a sum has to wait for itself.
template <Kind kind>
void stream_block(const PackedMatrix& matrix, std::size_t block, const std::uint8_t* x, std::size_t tokens, float* y,
                  std::size_t stride, const Widener& widener) {
    constexpr std::size_t kRing = 4;
    alignas(64) std::uint8_t wide[kRing][2 * kTileBytes];
    const std::size_t groups = matrix.columns / kGroup;
    const std::uint8_t* weight = matrix.block(block);
    _tile_zero(0);
    _tile_zero(1);
    if (kind == Kind::int8) widener.widen(weight, wide[0]);
    for (std::size_t group = 0; group < groups; ++group) {
        const std::uint8_t* tiles = weight + 2 * group * kTileBytes;
        if (kind == Kind::int8) {
            // One ahead of its use: a tile cannot be loaded while its bytes are on their way to the cache.
            if (group + 1 < groups) widener.widen(weight + (group + 1) * kTileBytes, wide[(group + 1) % kRing]);
            tiles = wide[group % kRing];
        } else {
            for (std::size_t line = 0; line < 2 * kTileBytes; line += 64) _mm_prefetch(tiles + line + kAhead, _MM_HINT_T0);
        }
        _tile_loadd(4, x + 2 * group * kTileBytes, 64);
        _tile_loadd(5, x + (2 * group + 1) * kTileBytes, 64);
        _tile_loadd(6, tiles, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, tiles + kTileBytes, 64);
        _tile_dpbf16ps(1, 5, 7);
    }
    alignas(64) Results even, odd;
    _tile_stored(0, even, 64);
    _tile_stored(1, odd, 64);
    for (std::size_t t = 0; t < tokens; ++t) {
        _mm512_store_ps(even[t], _mm512_add_ps(_mm512_load_ps(even[t]), _mm512_load_ps(odd[t])));
    }
    put(even, matrix, block, tokens, y, stride);
}

// 32 tokens by two blocks (`next` may be the same twice), whose tiles of bfloat16 lie at `low` and `high`.
void four_tiles(const std::uint8_t* x, const std::uint8_t* next, const std::uint8_t* low, const std::uint8_t* high,
                std::size_t columns, Results (&results)[4]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::size_t at = 0; at < columns / kTileColumns * kTileBytes; at += kTileBytes) {
        _tile_loadd(6, low + at, 64);
        _tile_loadd(4, x + at, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, high + at, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, next + at, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, results[0], 64);
    _tile_stored(1, results[1], 64);
    _tile_stored(2, results[2], 64);
    _tile_stored(3, results[3], 64);
}

template <Kind kind>
void two_blocks(const PackedMatrix& matrix, std::size_t block, std::size_t count, const std::uint8_t* x,
                std::size_t tokens, float* y, std::size_t stride, const Widener& widener, std::uint8_t* wide) {
    const std::size_t bytes = kBlockRows * matrix.columns * 2, panel = kTileTokens * matrix.columns * 2;
    const std::uint8_t* blocks[2] = {matrix.block(block), matrix.block(block + count - 1)};
    if (kind == Kind::int8) {
        for (std::size_t b = 0; b < count; ++b) {
            for (std::size_t at = 0; at < bytes / 2; at += kTileBytes) {
                widener.widen(blocks[b] + at, wide + b * bytes + 2 * at);
            }
        }
        blocks[0] = wide, blocks[1] = wide + (count - 1) * bytes;
    }
    alignas(64) Results results[4];
    for (std::size_t token = 0; token < tokens; token += 2 * kTileTokens) {
        const std::uint8_t* panel_x = x + token / kTileTokens * panel;
        const std::size_t left = tokens - token;
        four_tiles(panel_x, left > kTileTokens ? panel_x + panel : panel_x, blocks[0], blocks[1], matrix.columns, results);
        for (std::size_t b = 0; b < count; ++b) {
            float* at = y + token * stride + b * kBlockRows;
            put(results[b], matrix, block + b, std::min(left, kTileTokens), at, stride);
            if (left > kTileTokens) {
                put(results[2 + b], matrix, block + b, std::min(left - kTileTokens, kTileTokens),
                    at + kTileTokens * stride, stride);
            }
        }
    }
}

template <Kind kind>
void multiply(const PackedMatrix& matrix, const std::uint8_t* prepared, std::size_t tokens, std::size_t first,
              std::size_t last, float* y, std::size_t stride) {
    const Tiles tiles;
    const Widener widener;
    if (tokens <= kTileTokens) {
        for (std::size_t block = first; block < last; ++block, y += kBlockRows) {
            stream_block<kind>(matrix, block, prepared, tokens, y, stride, widener);
        }
        return;
    }
    thread_local std::vector<std::uint8_t> memory;
    std::uint8_t* wide = nullptr;
    if (kind == Kind::int8) {
        memory.resize(4 * kBlockRows * matrix.columns + 64);
        wide = memory.data() + (-reinterpret_cast<std::uintptr_t>(memory.data()) & 63);
    }
    for (std::size_t block = first; block < last; block += 2, y += 2 * kBlockRows) {
        two_blocks<kind>(matrix, block, std::min<std::size_t>(2, last - block), prepared, tokens, y, stride, widener, wide);
    }
}

// The kernel gives tiles to processes that ask for them.
bool may_use_tiles() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return granted;
}

constexpr Kernel kInt8{prepared_bytes, prepare, multiply<Kind::int8>};
constexpr Kernel kBfloat16{prepared_bytes, prepare, multiply<Kind::bfloat16>};

}  // namespace

const Kernel* amx_kernel(Kind kind) {
    return !may_use_tiles() ? nullptr : kind == Kind::int8 ? &kInt8 : &kBfloat16;
}

}  // namespace shardyard

#else

const shardyard::Kernel* shardyard::amx_kernel(Kind) { return nullptr; }

#endif
