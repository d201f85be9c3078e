// A weight [rows, columns] in the order in which the kernels read it, and the kernels' interface.
//
// Rows are taken in blocks of 16. Inside a block, columns are taken in fours (int8) or twos (bfloat16), so that the 64
// bytes of a vector register hold 16 rows · 4 bytes, and each register is one step of a dot product:
//   int8      [blocks, columns / 4, 16, 4], one byte each, which holds the number + 128, and a float32 scale per row
//   bfloat16  [blocks, columns / 2, 16, 2]
// A product thus reads its weight front to back, once. 16 registers are a tile of AMX.
#pragma once

#include <cstddef>
#include <cstdint>

namespace shardyard {

enum class Kind : std::int64_t { int8 = 0, bfloat16 = 1 };

constexpr std::size_t kBlockRows = 16;
// Blocks that a kernel may read at once with so many tokens, if it is given so many: a core gets more from memory by
// several streams than by one, and what is loaded of the activations serves all. Their sums must fit into 24 registers.
constexpr std::size_t blocks_together(std::size_t tokens) { return tokens <= 6 ? 4 : tokens <= 8 ? 3 : 1; }
// Columns of an activation that share a scale when it is quantized; also what AMX takes of int8 in one step.
constexpr std::size_t kGroup = 64;

struct PackedMatrix {
    const std::uint8_t* numbers;
    const float* scales;  // Only int8 has them.
    std::size_t rows, columns;
    Kind kind;

    std::size_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
    std::size_t block_bytes() const { return kBlockRows * columns * (kind == Kind::int8 ? 1 : 2); }
    const std::uint8_t* block(std::size_t index) const { return numbers + index * block_bytes(); }
};

// How one kind of CPU multiplies. Activations x, float32 [tokens, columns], are first brought into the kernel's own form.
struct Kernel {
    // Bytes of that form.
    std::size_t (*prepared_bytes)(std::size_t tokens, std::size_t columns);
    // Prepares the rows [first, last) of x; a multiple of 16 or all that are left.
    void (*prepare)(const float* x, std::size_t columns, std::size_t tokens, std::size_t first, std::size_t last,
                    std::uint8_t* prepared);
    // Writes x · Wᵀ of the matrix's blocks [first, last): y [tokens, 16 · (last - first)], rows `stride` floats apart.
    void (*multiply)(const PackedMatrix& matrix, const std::uint8_t* prepared, std::size_t tokens, std::size_t first,
                     std::size_t last, float* y, std::size_t stride);
};

// The kernels of each level of CPU; null where this library was compiled for a lesser one.
const Kernel* avx2_kernel(Kind kind);
const Kernel* avx512_kernel(Kind kind);
const Kernel* amx_kernel(Kind kind);
// For bfloat16 and many tokens; it may be used where amx_kernel may.
const Kernel* amx_many_kernel();

}  // namespace shardyard
