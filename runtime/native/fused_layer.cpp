#include "fused_layer.hpp"

#include <vector>

#include "in_parts.hpp"
#include "rms_norm.hpp"

namespace shardyard {
namespace {

// Tokens whose norms a thread takes at a time.
constexpr std::size_t kTokenPortion = 16;

// What a step's tokens are on their way through a layer.
struct Rows {
    std::vector<float> part, normed, inner;

    void make_room(std::size_t tokens, std::size_t hidden, std::size_t width) {
        if (part.size() < tokens * hidden) part.resize(tokens * hidden), normed.resize(tokens * hidden);
        if (inner.size() < tokens * width) inner.resize(tokens * width);
    }
};

// A row-parallel product: this rank's part of the sum, then the sum.
void product(const LayerForm& form, const PackedMatrix& matrix, const float* x, std::size_t tokens, float* y) {
    multiply(matrix, nullptr, Activation::none, form.level, x, tokens, y);
    if (form.group) form.group->sum(y, y, tokens * matrix.rows);
}

// total = x + part, and with weights its norm in `normed`. `total` may be x.
void add_and_norm(const float* x, const float* part, std::size_t tokens, std::size_t hidden, const float* weights,
                  float epsilon, float* total, float* normed) {
    in_parts(tokens, kTokenPortion, [&](std::size_t first, std::size_t last) {
        for (std::size_t at = first * hidden; at < last * hidden; at += hidden) {
            for (std::size_t k = at; k < at + hidden; ++k) total[k] = x[k] + part[k];
            if (weights) rms_norm(total + at, weights, hidden, epsilon, normed + at);
        }
    });
}

}  // namespace

void run_layer(const LayerForm& form, const LayerParts& parts, const float* x, const float* y, std::size_t tokens,
               float* total, float* qkv) {
    thread_local Rows rows;
    const std::size_t hidden = parts.dense.rows;
    rows.make_room(tokens, hidden, parts.up.rows);
    float *part = rows.part.data(), *normed = rows.normed.data(), *inner = rows.inner.data();
    product(form, parts.dense, y, tokens, part);
    add_and_norm(x, part, tokens, hidden, parts.norm, form.epsilon, total, normed);
    multiply(parts.up, &parts.gate, form.activation, form.level, normed, tokens, inner);
    product(form, parts.proj, inner, tokens, part);
    add_and_norm(total, part, tokens, hidden, parts.next_norm, form.epsilon, total, normed);
    if (parts.next_qkv) multiply(*parts.next_qkv, nullptr, Activation::none, form.level, normed, tokens, qkv);
}

}  // namespace shardyard
