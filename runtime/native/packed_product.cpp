#include "packed_product.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "in_parts.hpp"

namespace shardyard {
namespace {

// Weights that a thread takes at a time, in bytes: little enough that one whose core is busy elsewhere keeps the others
// waiting for a few microseconds only, enough that taking costs nothing.
constexpr std::size_t kPortion = 128 << 10;
// With more tokens than these, tiles of 16 are full enough to pay.
constexpr std::size_t kFewInt8 = 8, kFewBfloat16 = 4;
// With more than these a portion has this many blocks at least, since all activations are read for each.
constexpr std::size_t kMany = 16, kManyBlocks = 8;
constexpr std::size_t kTokenPortion = 16;
// Portions for each thread that even out what the threads do differently.
constexpr std::size_t kPlenty = 6;
// Of several products, the activations of so many are prepared by one thread at a time.
constexpr std::size_t kTasks = 8;

// How many blocks a thread takes at a time.
std::size_t portion_blocks(const PackedMatrix& matrix, const PackedMatrix* gate, std::size_t tokens) {
    const std::size_t bytes = matrix.block_bytes() * (gate ? 2 : 1);
    const std::size_t blocks = std::max(tokens > kMany ? kManyBlocks : 1, kPortion / bytes);
    // Where that leaves all threads with enough of them, for few tokens as the kernels like it best.
    const std::size_t together = blocks_together(tokens);
    const bool plenty = matrix.blocks() >= kPlenty * together * tbb::this_task_arena::max_concurrency();
    return plenty ? (blocks + together - 1) / together * together : blocks;
}

const Kernel& kernel_for(Level level, Kind kind, std::size_t tokens) {
    const std::size_t few = kind == Kind::int8 ? kFewInt8 : kFewBfloat16;
    if (level == Level::amx && kind == Kind::bfloat16 && tokens > kMany) return *amx_many_kernel();
    if (level == Level::amx && tokens > few) return *amx_kernel(kind);
    return level == Level::avx2 ? *avx2_kernel(kind) : *avx512_kernel(kind);
}

std::uint8_t* aligned(std::vector<std::uint8_t>& memory, std::size_t bytes) {
    if (memory.size() < bytes + 64) memory.resize(bytes + 64);
    return memory.data() + (-reinterpret_cast<std::uintptr_t>(memory.data()) & 63);
}

// What every part of one product shares.
struct Product {
    const PackedMatrix& matrix;
    const PackedMatrix* gate;
    Activation activation;
    const Kernel& kernel;
    const std::uint8_t* prepared;
    std::size_t tokens;
    float* y;

    void blocks(std::size_t first, std::size_t last) const {
        const std::size_t begin = first * kBlockRows, width = std::min(matrix.rows, last * kBlockRows) - begin;
        // The kernels write whole blocks, and the last may be wider than the matrix.
        const bool whole = width == (last - first) * kBlockRows;
        const std::size_t stride = whole ? matrix.rows : (last - first) * kBlockRows;
        thread_local std::vector<float> rest, gates;
        if (!whole) rest.resize(tokens * stride);
        float* to = whole ? y + begin : rest.data();
        kernel.multiply(matrix, prepared, tokens, first, last, to, stride);
        if (gate) {
            const std::size_t room = (last - first) * kBlockRows;
            gates.resize(tokens * room);
            kernel.multiply(*gate, prepared, tokens, first, last, gates.data(), room);
            for (std::size_t t = 0; t < tokens; ++t) {
                gate_row(activation, gates.data() + t * room, to + t * stride, width);
            }
        }
        if (whole) return;
        for (std::size_t t = 0; t < tokens; ++t) {
            std::memcpy(y + t * matrix.rows + begin, to + t * stride, width * sizeof(float));
        }
    }
};

}  // namespace

Level best_level() {
    if (amx_kernel(Kind::int8) && avx512_kernel(Kind::int8)) return Level::amx;
    if (avx512_kernel(Kind::int8)) return Level::avx512;
    return avx2_kernel(Kind::int8) ? Level::avx2 : Level::none;
}

void multiply(const PackedMatrix& matrix, const PackedMatrix* gate, Activation activation, Level level, const float* x,
              std::size_t tokens, float* y) {
    if (!tokens) return;
    const Kernel& kernel = kernel_for(level, matrix.kind, tokens);
    thread_local std::vector<std::uint8_t> memory;
    std::uint8_t* prepared = aligned(memory, kernel.prepared_bytes(tokens, matrix.columns));
    in_parts(tokens, kTokenPortion, [&](std::size_t first, std::size_t last) {
        kernel.prepare(x, matrix.columns, tokens, first, last, prepared);
    });
    const Product product{matrix, gate, activation, kernel, prepared, tokens, y};
    const std::size_t grain = portion_blocks(matrix, gate, tokens);
    in_parts(matrix.blocks(), grain, [&](std::size_t first, std::size_t last) { product.blocks(first, last); });
}

void multiply_together(const std::vector<Task>& tasks, Activation activation, Level level) {
    thread_local std::vector<std::uint8_t> memory;
    struct Portion {
        std::size_t task, first, last;
    };
    std::vector<const Kernel*> kernels;
    std::vector<std::size_t> starts, owners;
    std::vector<Portion> portions;
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
        const Task& task = tasks[i];
        kernels.push_back(&kernel_for(level, task.matrix.kind, task.tokens));
        const bool shared = i && task.x == tasks[i - 1].x && task.tokens == tasks[i - 1].tokens &&
                            kernels[i] == kernels[i - 1] && task.matrix.columns == tasks[i - 1].matrix.columns;
        if (!shared) owners.push_back(i);
        starts.push_back(shared ? starts.back() : bytes);
        if (!shared) bytes += (kernels[i]->prepared_bytes(task.tokens, task.matrix.columns) + 63) & ~std::size_t{63};
        const std::size_t grain = portion_blocks(task.matrix, task.gate, task.tokens);
        for (std::size_t first = 0; first < task.matrix.blocks(); first += grain) {
            portions.push_back({i, first, std::min(task.matrix.blocks(), first + grain)});
        }
    }
    std::uint8_t* prepared = aligned(memory, bytes);
    in_parts(owners.size(), kTasks, [&](std::size_t first, std::size_t last) {
        for (std::size_t i = first; i < last; ++i) {
            const Task& task = tasks[owners[i]];
            kernels[owners[i]]->prepare(task.x, task.matrix.columns, task.tokens, 0, task.tokens,
                                        prepared + starts[owners[i]]);
        }
    });
    in_parts(portions.size(), 1, [&](std::size_t index, std::size_t) {
        const auto& [i, first, last] = portions[index];
        const Task& task = tasks[i];
        Product{task.matrix, task.gate, activation, *kernels[i], prepared + starts[i], task.tokens, task.y}.blocks(
            first, last);
    });
}

void unpack_row(const PackedMatrix& matrix, std::size_t row, float* y) {
    const std::uint8_t* lane = matrix.block(row / kBlockRows) + row % kBlockRows * 4;
    if (matrix.kind == Kind::int8) {
        const float scale = matrix.scales[row];
        for (std::size_t k = 0; k < matrix.columns; k += 4, lane += 64) {
            for (int i = 0; i < 4; ++i) y[k + i] = static_cast<float>(lane[i] - 128) * scale;
        }
        return;
    }
    for (std::size_t k = 0; k < matrix.columns; k += 2, lane += 64) {
        for (int i = 0; i < 2; ++i) {
            const std::uint32_t bits = static_cast<std::uint32_t>(lane[2 * i] | lane[2 * i + 1] << 8) << 16;
            std::memcpy(y + k + i, &bits, sizeof(bits));
        }
    }
}

}  // namespace shardyard
