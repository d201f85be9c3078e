// The eight tiles of AMX as the kernels use them: 16 rows of 64 bytes each.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace shardyard {

struct alignas(64) TileShapes {
    std::uint8_t palette = 1, start_row = 0, unused[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64, "what the instruction reads");

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

}  // namespace shardyard
