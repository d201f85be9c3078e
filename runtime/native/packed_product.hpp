// Products with packed matrices, on the threads of the caller's arena.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gating.hpp"
#include "packed_matrix.hpp"

namespace shardyard {

// What a CPU can do, least first.
enum class Level : std::int64_t { none = 0, avx2 = 1, avx512 = 2, amx = 3 };

// The best level that this library was compiled for and this process may use.
Level best_level();

// y [tokens, rows] = x [tokens, columns] · Wᵀ; with a gate G of the same shape, act(x · Gᵀ) · (x · Wᵀ).
void multiply(const PackedMatrix& matrix, const PackedMatrix* gate, Activation activation, Level level, const float* x,
              std::size_t tokens, float* y);

// y [columns] = row `row` of the matrix.
void unpack_row(const PackedMatrix& matrix, std::size_t row, float* y);

}  // namespace shardyard
