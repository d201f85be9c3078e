// Products with packed matrices, on the threads of the caller's arena.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

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

// One of several products that are made at once; as the arguments of `multiply`.
struct Task {
    const PackedMatrix& matrix;
    const PackedMatrix* gate;
    const float* x;
    std::size_t tokens;
    float* y;
};

// Makes all of them in one loop over their blocks. Those in a row that have the same x and tokens share its preparation.
void multiply_together(const std::vector<Task>& tasks, Activation activation, Level level);

// y [columns] = row `row` of the matrix.
void unpack_row(const PackedMatrix& matrix, std::size_t row, float* y);

}  // namespace shardyard
